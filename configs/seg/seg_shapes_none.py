"""No distillation: cross-entropy of the labelled pixels alone.

python tools/train.py configs/seg/seg_shapes_none.py
"""

_base_ = "./seg_shapes.py"
model = dict(teacher=None, distill=None)
