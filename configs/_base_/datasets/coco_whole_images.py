"""What OV-COCO and OV-LVIS ask of whole images: captions, and single objects.

Captions of the training images name novel classes, too. A ``TestSuiteLoop`` runs
``retrieval`` with the captions of val2017: 5,000 images, not Karpathy's.
"""

captions = "data/coco/annotations/captions_train2017.json"
loader = dict(
    batch_size=16,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
)
retrieval = dict(
    dataloader=dict(
        dataset=dict(
            type="CaptionDataset",
            test_mode=True,
            ann_file="data/coco/annotations/captions_val2017.json",
            data_prefix=dict(img="data/coco/val2017/"),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="Resize", scale=(640, 640), keep_ratio=True),
                dict(type="PackInputs"),
            ],
        ),
        **loader,
    ),
    evaluator=dict(type="RetrievalMetric", protocol="COCO captions, val2017"),
)
crop_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CropToBox"),
    dict(type="Resize", scale=(224, 224), keep_ratio=True),
    dict(type="PackInputs"),
]
