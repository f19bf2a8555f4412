"""Hard world, no distillation: cross-entropy of the labelled pixels alone.

python tools/train.py configs/seg/seg_shapes_hard_none.py
"""

_base_ = "./seg_shapes_hard.py"
model = dict(teacher=None, distill=None)
