"""The whole system on OV-LVIS: YOLOv5's backbone.

python tools/train.py configs/kdeov/parts/ovlvis_backbone_yolov5.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(backbone=dict(type="mmyolo.YOLOv5CSPDarknet"))
