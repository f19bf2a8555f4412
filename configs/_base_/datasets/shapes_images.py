"""The built-in world, captions of its training scenes beside the boxes, and more tests.

``other_tests``: retrieval with captions, and the objects cut out, zero-shot.
"""

_base_ = "./shapes.py"
captions = "data/shapes/annotations/captions_train.json"
train_pipeline = _base_.train_pipeline
train_pipeline.insert(1, dict(type="LoadCaptions", ann_file=captions))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
loader = dict(
    batch_size=16,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
)
crop_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CropToBox"),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="PackInputs"),
]
other_tests = dict(
    retrieval=dict(
        dataloader=dict(
            dataset=dict(
                type="CaptionDataset",
                test_mode=True,
                ann_file="data/shapes/annotations/captions_val.json",
                data_prefix=dict(img="data/shapes/images/val/"),
                pipeline=_base_.test_pipeline,
            ),
            **loader,
        ),
        evaluator=dict(type="RetrievalMetric", protocol="shapes-360 scenes, captions"),
    ),
    zero_shot=dict(
        dataloader=dict(
            dataset=dict(
                type="ShapesCrops",
                test_mode=True,
                data_root=_base_.data_root,
                data_prefix=dict(img="images/val/"),
                ann_file="annotations/instances_val.json",
                pipeline=crop_pipeline,
            ),
            **loader,
        ),
        evaluator=dict(
            type="ZeroShotMetric", protocol="shapes-360, objects one by one"
        ),
    ),
)
