"""The demo on YOLOv5's backbone: one line changed.

python tools/train.py configs/kdeov/kdeov_n_shapes_yolov5.py
"""

_base_ = "./kdeov_n_shapes.py"
model = dict(backbone=dict(type="mmyolo.YOLOv5CSPDarknet"))
