"""The demo: a student that finds classes which had no box in training.

Boxes of 200 base classes; what the teacher sees in the student's own boxes does
the rest. Base / novel AP50 0.991 / 0.991, in about 8 minutes on 2 cores.
    python tools/train.py configs/kdeov/kdeov_n_shapes.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n.py",
    "../_base_/datasets/shapes.py",
    "../_base_/schedules/adamw_shapes_1600.py",
]
