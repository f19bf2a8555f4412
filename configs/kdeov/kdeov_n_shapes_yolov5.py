"""The demo on YOLOv5's backbone: one line changed.

Any backbone with outputs at strides 8, 16 and 32 will do. About 7 minutes on 2 cores;
AP not measured yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_yolov5.py
"""

_base_ = "./kdeov_n_shapes.py"
model = dict(backbone=dict(type="mmyolo.YOLOv5CSPDarknet"))
