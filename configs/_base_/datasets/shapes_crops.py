"""The objects of the built-in world, each an image: all 360 words at test time.

Written by ``python tools/make_shapes.py``.
"""

data_root = "data/shapes/"
image_size = 64  # the nearest of the sizes that the joint student saw crops at
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CropToBox"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="ShapesCrops",
        data_root=data_root,
        vocabulary="base",
        ann_file="annotations/instances_train_base.json",
        data_prefix=dict(img="images/train/"),
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ShapesCrops",
        data_root=data_root,
        test_mode=True,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ZeroShotMetric", protocol="shapes-360, objects one by one")
test_evaluator = val_evaluator
