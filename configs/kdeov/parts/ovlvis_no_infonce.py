"""The whole system on OV-LVIS: no captions are learnt.

python tools/train.py configs/kdeov/parts/ovlvis_no_infonce.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(global_head=dict(contrast=None))
