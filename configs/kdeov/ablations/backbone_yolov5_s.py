"""YOLOv5s: its backbone, at its own width.

python tools/train.py configs/kdeov/ablations/backbone_yolov5_s.py
"""

_base_ = "./backbone_yolov5.py"
widen_factor = 0.5
model = dict(
    backbone=dict(widen_factor=widen_factor),
    neck=dict(widen_factor=widen_factor),
    bbox_head=dict(head_module=dict(widen_factor=widen_factor)),
)
