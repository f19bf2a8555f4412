"""The built-in world: boxes of 200 base classes, all 360 words at test time.

Written by ``python tools/make_shapes.py``.
"""

data_root = "data/shapes/"
image_size = 160

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="ShapesDataset",
        data_root=data_root,
        vocabulary="base",
        ann_file="annotations/instances_train_base.json",
        data_prefix=dict(img="images/train/"),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ShapesDataset",
        data_root=data_root,
        test_mode=True,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="OpenVocabularyMetric",
    protocol="shapes-360, generalised, COCO AP",
    ann_file=data_root + "annotations/instances_val.json",
)
test_evaluator = val_evaluator
