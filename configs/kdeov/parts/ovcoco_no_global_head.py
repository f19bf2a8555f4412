"""The whole system on OV-COCO: no head for whole images.

python tools/train.py configs/kdeov/parts/ovcoco_no_global_head.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(global_head=None)
test_cfg = dict(type="TestLoop", _delete_=True)  # detection alone
