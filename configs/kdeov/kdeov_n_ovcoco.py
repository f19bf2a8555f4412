"""OV-COCO 48/17, from nothing, all parts of the system: docs/data.md.

Tested 65-way and 80-way, on captions and on single objects, in one run. Not measured
yet.
    python tools/train.py configs/kdeov/kdeov_n_ovcoco.py
"""

_base_ = [
    "../_base_/models/kdeov_yolov8_n_whole.py",
    "../_base_/datasets/ov_coco_images.py",
    "../_base_/schedules/adamw_84k.py",
]
test_cfg = dict(type="TestSuiteLoop", others={{_base_.other_tests}})
