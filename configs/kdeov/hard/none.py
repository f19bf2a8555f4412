"""No teacher: boxes of the 359 base classes alone.

python tools/train.py configs/kdeov/hard/none.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(teacher=None, distill=None)
