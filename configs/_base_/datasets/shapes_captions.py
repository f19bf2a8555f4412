"""The built-in world's scenes with their captions, three each.

Written by ``python tools/make_shapes.py``.
"""

data_root = "data/shapes/"
image_size = 160
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadCaptions"),
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
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="CaptionDataset",
        ann_file=data_root + "annotations/captions_train.json",
        data_prefix=dict(img=data_root + "images/train/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CaptionDataset",
        test_mode=True,
        ann_file=data_root + "annotations/captions_val.json",
        data_prefix=dict(img=data_root + "images/val/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="RetrievalMetric", protocol="shapes-360 scenes, captions")
test_evaluator = val_evaluator
