"""ViLD's two stages: a ResNet-18, text and image losses on one head.

python tools/train.py configs/kdeov/hard/vild.py
"""

_base_ = [
    "../../_base_/default_runtime.py",
    "../../_base_/models/vild_r18_fpn.py",
    "../../_base_/datasets/shapes_hard.py",
    "../../_base_/schedules/adamw_shapes.py",
]
model = dict(
    text_encoder=dict(model="shapes-hard"),
    teacher=dict(model="shapes-hard"),
    test_cfg=dict(rcnn=dict(max_per_img=1000)),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.002))
