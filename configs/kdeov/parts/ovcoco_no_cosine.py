"""The whole system on OV-COCO: of whole images only captions are learnt.

python tools/train.py configs/kdeov/parts/ovcoco_no_cosine.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(global_head=dict(distances=None))
