"""YOLOv5's backbone: one line changed.

python tools/train.py configs/kdeov/ablations/backbone_yolov5.py
"""

_base_ = "./default.py"
model = dict(backbone=dict(type="mmyolo.YOLOv5CSPDarknet"))
