"""The whole system on shapes: no head for whole images.

python tools/train.py configs/kdeov/parts/shapes_no_global_head.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(global_head=None)
test_cfg = dict(type="TestLoop", _delete_=True)  # detection alone
