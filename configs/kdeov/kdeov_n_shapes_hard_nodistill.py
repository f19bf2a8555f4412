"""The hard built-in world without a teacher: boxes of the 359 base classes only.

Not measured yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_hard_nodistill.py
"""

_base_ = "./kdeov_n_shapes_hard.py"
model = dict(teacher=None, distill=None)
