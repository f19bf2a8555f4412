"""Scenes and their captions, by InfoNCE.

python tools/train.py configs/image_text/yolov8_n_shapes.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/image_text_yolov8_n.py",
    "../_base_/datasets/shapes_captions.py",
    "../_base_/schedules/adamw.py",
]
model = dict(global_head=dict(contrast=dict(type="InfoNCE")))
