"""The world of 1203 classes without a teacher: boxes of the 866 base classes only.

AP / APr 0.660 / 0.149, measured without the L2 norm.

python tools/train.py configs/kdeov/kdeov_n_shapes1203_nodistill.py
"""

_base_ = "./kdeov_n_shapes1203.py"
model = dict(teacher=None, distill=None)
