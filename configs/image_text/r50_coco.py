"""ResNet-50 and COCO's captions against CLIP ViT-B/32's frozen text tower.

The student of "CLIP with a ResNet-50": InfoNCE with a caption, another one each time.
About 30 epochs of 128 images, from torchvision's ImageNet weights. Not measured.

    python tools/train.py configs/image_text/r50_coco.py
"""

_base_ = [
    "../_base_/schedules/adamw_84k.py",
    "../_base_/models/image_text_r50.py",
    "../_base_/datasets/coco_captions.py",
]
model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"))
)
pretraining = ["imagenet-1k"]  # labels of these weights
max_iters = 28_000
train_cfg = dict(max_iters=max_iters, val_interval=7_000)
optim_wrapper = dict(optimizer=dict(lr=0.0003))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=1_000),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=1_000,
        end=max_iters,
        T_max=max_iters - 1_000,
        eta_min_ratio=0.01,
    ),
]
