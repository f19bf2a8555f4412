"""OV-COCO 48/17, tested 80-way, with YOLOv8-s, twice as wide. Not measured yet.

python tools/train.py configs/kdeov/kdeov_s_ovcoco_80.py
"""

_base_ = "./kdeov_n_ovcoco_80.py"
model = dict(
    backbone=dict(widen_factor=0.5),
    neck=dict(widen_factor=0.5),
    bbox_head=dict(head_module=dict(widen_factor=0.5)),
)
