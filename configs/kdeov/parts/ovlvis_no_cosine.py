"""The whole system on OV-LVIS: of whole images only captions are learnt.

python tools/train.py configs/kdeov/parts/ovlvis_no_cosine.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(global_head=dict(distances=None))
