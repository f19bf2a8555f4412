"""ViLD-text: words alone teach, no distillation.

python tools/train.py configs/vild/vild_text_r18_shapes.py
"""

_base_ = "./vild_r18_shapes.py"
model = dict(teacher=None, distill=None)
