"""The long schedule without its teacher: boxes of the base classes only.

python tools/train.py configs/kdeov/kdeov_n_shapes_long_nodistill.py
"""

_base_ = "./kdeov_n_shapes_long.py"
model = dict(teacher=None, distill=None)
