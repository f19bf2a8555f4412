"""OV-LVIS 866/337, tested on val, with YOLOv8-s, twice as wide. Not measured yet.

python tools/train.py configs/kdeov/kdeov_s_ovlvis.py
"""

_base_ = "./kdeov_n_ovlvis.py"
model = dict(
    backbone=dict(widen_factor=0.5),
    neck=dict(widen_factor=0.5),
    bbox_head=dict(head_module=dict(widen_factor=0.5)),
)
