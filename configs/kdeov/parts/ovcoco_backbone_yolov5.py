"""The whole system on OV-COCO: YOLOv5's backbone.

python tools/train.py configs/kdeov/parts/ovcoco_backbone_yolov5.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(backbone=dict(type="mmyolo.YOLOv5CSPDarknet"))
