"""The whole system on shapes: YOLOv5's backbone.

python tools/train.py configs/kdeov/parts/shapes_backbone_yolov5.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(backbone=dict(type="mmyolo.YOLOv5CSPDarknet"))
