"""200 photos of raccoons, VOC XML; a data set of your own looks the same.

https://github.com/datitran/raccoon_dataset (MIT): 160 photos train, 40 test, in
the order of their names as strings. docs/custom_dataset.md makes the lists.
"""

data_root = "data/raccoon/"
words = ("raccoon",)
metainfo = dict(classes=words, palette=[(220, 60, 20)])
image_size = 256

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(
        type="RandomAffine",
        max_rotate_degree=5,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.6, 1.4),
        max_shear_degree=2,
        border_val=(0, 0, 0),  # as the padding
    ),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [  # boxes are loaded after Resize: mmdet.VOCMetric wants the file's
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(image_size, image_size), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="OVXMLDataset",
        data_root=data_root,
        ann_file="train.txt",
        img_subdir="images",
        ann_subdir="annotations",
        data_prefix=dict(sub_data_root=""),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="OVXMLDataset",
        data_root=data_root,
        ann_file="test.txt",
        img_subdir="images",
        ann_subdir="annotations",
        test_mode=True,
        data_prefix=dict(sub_data_root=""),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VOCMetric", metric="mAP", eval_mode="area")
test_evaluator = val_evaluator
