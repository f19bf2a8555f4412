"""Masks by words on the built-in world: the objects that the student sees are taught.

python tools/train.py configs/seg/seg_shapes.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_yolov8_n.py",
    "../_base_/datasets/shapes_seg.py",
    "../_base_/schedules/adamw_shapes.py",
]
model = dict(label_stride=4)
visualizer = dict(type="SegVisualizer")
