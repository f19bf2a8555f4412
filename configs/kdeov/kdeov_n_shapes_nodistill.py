"""The demo without its teacher: boxes of the base classes only.

Shows what the distillation is worth. Base / novel AP50 0.976 / 0.061 on half the
schedule.
    python tools/train.py configs/kdeov/kdeov_n_shapes_nodistill.py
"""

_base_ = "./kdeov_n_shapes.py"
model = dict(teacher=None, distill=None)
