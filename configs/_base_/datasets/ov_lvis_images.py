"""OV-LVIS, captions of its training images beside the boxes, and two more tests.

The images are COCO's, and so are the captions. ``other_tests``: retrieval with
captions, and the objects of LVIS val cut out, zero-shot.
"""

_base_ = ["./ov_lvis.py", "./coco_whole_images.py"]
train_pipeline = _base_.train_pipeline
train_pipeline.insert(2, dict(type="LoadCaptions", ann_file=_base_.captions))
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
other_tests = dict(
    retrieval=_base_.retrieval,
    zero_shot=dict(
        dataloader=dict(
            dataset=dict(
                type="LVISCrops",
                vocabulary="all",
                min_size=32,
                test_mode=True,
                data_root=_base_.data_root,
                data_prefix=dict(img=""),
                ann_file="annotations/lvis_v1_val.json",
                pipeline=_base_.crop_pipeline,
            ),
            **_base_.loader,
        ),
        evaluator=dict(
            type="ZeroShotMetric",
            protocol="OV-LVIS 866/337, boxes of val cut out, 32 pixels and more",
        ),
    ),
)
