"""Pascal VOC 2012, the augmented list: 20 classes and background.

docs/data.md says what to download and where to put it.
"""

data_root = "data/VOCdevkit/VOC2012/"
crop_size = (512, 512)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap"),
    dict(
        type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True
    ),
    dict(type="RandomCrop", crop_type="absolute", crop_size=crop_size),
    dict(type="HSVJitter"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadLabelMap"),  # of the original's size
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="VOCSegDataset",
        data_root=data_root,
        ann_file="ImageSets/Segmentation/train_aug.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VOCSegDataset",
        data_root=data_root,
        test_mode=True,
        ann_file="ImageSets/Segmentation/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="SegMetric",
    classwise=True,
    protocol="Pascal VOC 2012 val, 20 classes; background is predicted, and no class",
)
test_evaluator = val_evaluator
