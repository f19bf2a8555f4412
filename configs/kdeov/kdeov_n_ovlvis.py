"""OV-LVIS 866/337, tested on val, from nothing: docs/data.md. Not measured yet.

python tools/train.py configs/kdeov/kdeov_n_ovlvis.py
"""

_base_ = [
    "../_base_/models/kdeov_yolov8_n_clip.py",
    "../_base_/datasets/ov_lvis.py",
    "../_base_/schedules/adamw_84k.py",
]
model = dict(
    vocabulary=dict(size=200, min_size=100),
    test_cfg=dict(max_per_img=1000),  # standard LVIS AP takes 300 of them
)
