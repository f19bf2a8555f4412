"""The student of r50_coco.py, zero-shot on ImageNet-1k (data/imagenet/val).

    python tools/train.py configs/image_text/r50_coco.py
    python tools/test.py configs/image_text/r50_coco_imagenet.py \
        work_dirs/r50_coco/iter_28000.pth
"""

_base_ = "./r50_coco.py"
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ImageFolderDataset",
        data_root="data/imagenet/val",
        vocabulary="imagenet-1k",
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale={{_base_.image_size}}, keep_ratio=True),
            dict(type="PackInputs"),
        ],
    )
)
test_evaluator = dict(
    _delete_=True, type="ZeroShotMetric", protocol="ImageNet-1k val, zero-shot"
)
