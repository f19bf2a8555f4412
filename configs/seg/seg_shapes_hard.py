"""Masks by words on the hard world: crowded scenes, a teacher that errs.

python tools/train.py configs/seg/seg_shapes_hard.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_yolov8_n.py",
    "../_base_/datasets/shapes_hard_seg.py",
    "../_base_/schedules/adamw_shapes.py",
]
model = dict(
    backbone=dict(
        init_cfg=dict(
            type="Pretrained",
            checkpoint="configs/kdeov/hard/start.pth",
            prefix="backbone",
        )
    ),
    seg_head=dict(centred=True),
    text_encoder=dict(model="shapes-hard"),
    teacher=dict(model="shapes-hard"),
    distill=dict(region=dict(proposals=15)),
    label_stride=4,
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
visualizer = dict(type="SegVisualizer")
