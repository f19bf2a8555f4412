"""OV-COCO: boxes of 48 base classes; 65 words (base and novel) at test time.

docs/data.md says what to download; ``tools/prepare_splits.py coco`` writes the files.
"""

data_root = "data/coco/"
image_size = 640

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="KeepOriginal"),  # what the teacher crops
    # large-scale jitter, as ViLD and Detic
    dict(
        type="LargeScaleJitter",
        size=image_size,
        ratio_range=(0.1, 2.0),
        min_box=2,
        colours=dict(type="HSVJitter"),
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=16,  # on each of 8 GPUs
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="OVCocoDataset",
        data_root=data_root,
        vocabulary="base",
        ann_file="annotations/ov_coco_train_base.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="OVCocoDataset",
        data_root=data_root,
        vocabulary="base_novel",
        test_mode=True,
        ann_file="annotations/ov_coco_val_65.json",
        data_prefix=dict(img="val2017/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="OpenVocabularyMetric",
    protocol="OV-COCO 48/17, val2017, 65-way: base and novel words",
    ann_file=data_root + "annotations/ov_coco_val_65.json",
    reliability=True,
)
test_evaluator = val_evaluator
