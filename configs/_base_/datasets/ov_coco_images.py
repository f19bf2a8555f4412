"""OV-COCO, captions of its training images beside the boxes, and three more tests.

``other_tests``: COCO's 80-way protocol, retrieval with captions, and the objects of
val2017 cut out, zero-shot.
"""

_base_ = ["./ov_coco.py", "./coco_whole_images.py"]
train_pipeline = _base_.train_pipeline
train_pipeline.insert(2, dict(type="LoadCaptions", ann_file=_base_.captions))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
tested = dict(
    data_root=_base_.data_root, data_prefix=dict(img="val2017/"), test_mode=True
)
other_tests = dict(
    way80=dict(
        dataloader=dict(
            dataset=dict(
                type="OVCocoDataset",
                vocabulary="all",
                ann_file="annotations/ov_coco_val_80.json",
                pipeline=_base_.test_pipeline,
                **tested,
            ),
            **_base_.loader,
        ),
        evaluator=dict(
            type="OpenVocabularyMetric",
            prefix="ov80",
            protocol="OV-COCO 48/17, val2017, 80-way: all words of COCO",
            ann_file="data/coco/annotations/ov_coco_val_80.json",
        ),
    ),
    retrieval=_base_.retrieval,
    zero_shot=dict(
        dataloader=dict(
            dataset=dict(
                type="CropDataset",
                vocabulary="base_novel",
                min_size=32,
                ann_file="annotations/ov_coco_val_65.json",
                pipeline=_base_.crop_pipeline,
                **tested,
            ),
            **_base_.loader,
        ),
        evaluator=dict(
            type="ZeroShotMetric",
            protocol="OV-COCO 48/17, boxes of val2017 cut out, 32 pixels and more",
        ),
    ),
)
