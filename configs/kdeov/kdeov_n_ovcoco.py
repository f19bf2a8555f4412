"""OV-COCO 48/17, tested 65-way, from nothing: docs/data.md. Not measured yet.

python tools/train.py configs/kdeov/kdeov_n_ovcoco.py
"""

_base_ = [
    "../_base_/models/kdeov_yolov8_n_clip.py",
    "../_base_/datasets/ov_coco.py",
    "../_base_/schedules/adamw_84k.py",
]
