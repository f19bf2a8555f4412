"""ViLD on the built-in world: text and image losses on one head.

python tools/train.py configs/vild/vild_r18_shapes.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/vild_r18_fpn.py",
    "../_base_/datasets/shapes.py",
    "../_base_/schedules/adamw.py",
]
