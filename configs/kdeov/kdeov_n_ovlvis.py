"""OV-LVIS 866/337, from nothing, all parts of the system: docs/data.md.

Tested on val, on COCO's captions and on single objects, in one run. Not measured yet.
    python tools/train.py configs/kdeov/kdeov_n_ovlvis.py
"""

_base_ = [
    "../_base_/models/kdeov_yolov8_n_whole.py",
    "../_base_/datasets/ov_lvis_images.py",
    "../_base_/schedules/adamw_84k.py",
]
model = dict(
    vocabulary=dict(size=200, min_size=100),
    test_cfg=dict(max_per_img=1000),  # standard LVIS AP takes 300 of them
)
test_cfg = dict(type="TestSuiteLoop", others={{_base_.other_tests}})
