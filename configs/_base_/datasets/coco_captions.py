"""COCO 2017 with its captions, five each and now and then more.

``captions_{train,val}2017.json`` of ``annotations_trainval2017.zip`` (docs/data.md).
val2017 has 5,000 images, but they are not those of Karpathy's 5k test split, on which
papers report.
"""

data_root = "data/coco/"
image_size = 224
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadCaptions"),
    dict(
        type="RandomResize",
        scale=(image_size, image_size),
        ratio_range=(1.0, 1.4),
        keep_ratio=False,
    ),
    dict(type="RandomCrop", crop_size=(image_size, image_size)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="CaptionDataset",
        ann_file=data_root + "annotations/captions_train2017.json",
        data_prefix=dict(img=data_root + "train2017/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CaptionDataset",
        test_mode=True,
        ann_file=data_root + "annotations/captions_val2017.json",
        data_prefix=dict(img=data_root + "val2017/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="RetrievalMetric", protocol="COCO captions, val2017")
test_evaluator = val_evaluator
