"""The whole system on OV-LVIS: no head for whole images.

python tools/train.py configs/kdeov/parts/ovlvis_no_global_head.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(global_head=None)
test_cfg = dict(type="TestLoop", _delete_=True)  # detection alone
