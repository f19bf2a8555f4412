"""The whole system on OV-COCO: no captions are learnt.

python tools/train.py configs/kdeov/parts/ovcoco_no_infonce.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(global_head=dict(contrast=None))
