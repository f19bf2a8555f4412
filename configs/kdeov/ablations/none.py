"""No distillation: boxes of the base classes only.

python tools/train.py configs/kdeov/ablations/none.py
"""

_base_ = "./default.py"
model = dict(teacher=None, distill=None)
