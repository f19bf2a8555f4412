"""ViLD on OV-LVIS with Mask R-CNN's mask branch: masks whatever the class.

Boxes are evaluated. The published figures are of masks, by the package ``lvis``
(``val_evaluator=dict(type="mmdet.LVISMetric", metric="segm", ...)``), which needs
numpy < 1.24. Not measured yet.
    python tools/train.py configs/vild/vild_mask_r50_ovlvis.py
"""

_base_ = "./vild_r50_ovlvis.py"
model = dict(
    roi_head=dict(
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type="FCNMaskHead",
            in_channels=256,
            num_classes=1,
            class_agnostic=True,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
train_pipeline = _base_.train_pipeline
train_pipeline[1].with_mask = True
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
