"""The built-in world's masks: 200 base classes labelled, all 360 words at test time.

Written by ``python tools/make_shapes.py``. Pixels of the other 160 classes are ignored
in training.
"""

data_root = "data/shapes/"
image_size = 160
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="LoadLabelMap"),  # of the original's size
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="ShapesSegDataset",
        data_root=data_root,
        vocabulary="base",
        data_prefix=dict(img_path="images/train", seg_map_path="semantic/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ShapesSegDataset",
        data_root=data_root,
        test_mode=True,
        data_prefix=dict(img_path="images/val", seg_map_path="semantic/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="SegMetric",
    protocol="shapes-360 masks, generalised: all 360 words and background",
)
test_evaluator = val_evaluator
