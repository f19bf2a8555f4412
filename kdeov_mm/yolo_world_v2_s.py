"""YOLO-World v2 S as a model of ours: a config page that lies in the package.

``configs/yoloworld`` begins with it, and a file of theirs that comes alone is built by
it (:mod:`kdeov_mm.yolo_world`, which also has the other sizes). The words are
those of OpenAI's CLIP ViT-B/32, without templates, as in their training.
"""

widen_factor = 0.5
channels = [256, 512, 1024]
strides = [8, 16, 32]
norm_cfg = dict(type="BN", momentum=0.03, eps=0.001)
size = dict(deepen_factor=0.33, widen_factor=widen_factor, norm_cfg=norm_cfg)

model = dict(
    type="KDEOVDetector",
    data_preprocessor=dict(
        type="BatchPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0] * 3,
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_value=114,
    ),
    backbone=dict(
        type="mmyolo.YOLOv8CSPDarknet", last_stage_out_channels=channels[2], **size
    ),
    neck=None,  # the words have a part in it
    fusion=dict(
        type="TextPAFPN",
        in_channels=channels,
        out_channels=channels,
        text_dims=512,
        **size,
    ),
    text_encoder=dict(
        type="CLIPTextEncoder",
        model="ViT-B-32-quickgelu",
        pretrained="openai",
        templates=["{}"],
    ),
    bbox_head=dict(
        type="OVHead",
        head_module=dict(
            type="mmdet.OVHeadModule",
            embed_dims=512,
            in_channels=channels,
            widen_factor=widen_factor,
            featmap_strides=strides,
            norm_cfg=norm_cfg,
            act_cfg=dict(type="SiLU", inplace=True),
            projection_norm=norm_cfg,
        ),
        prior_generator=dict(type="MlvlPointGenerator", offset=0.5, strides=strides),
        bbox_coder=dict(type="mmyolo.DistancePointBBoxCoder"),
        loss_bbox=dict(
            type="mmyolo.IoULoss",
            iou_mode="ciou",
            bbox_format="xyxy",
            reduction="sum",
            loss_weight=7.5,
            return_iou=False,
        ),
        loss_dfl=dict(
            type="DistributionFocalLoss", reduction="mean", loss_weight=0.375
        ),
    ),
    vocabulary=dict(size=80, min_size=80),
    train_cfg=dict(
        assigner=dict(
            type="mmdet.TaskAligner",
            num_classes=1,
            topk=10,
            alpha=0.5,
            beta=6.0,
            eps=1e-9,
            use_ciou=True,
        )
    ),
    test_cfg=dict(
        multi_label=True,
        nms_pre=30000,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.7),
        max_per_img=300,
    ),
)
# what the weights have seen: GoldG (GQA, Flickr30k) and CC3M-lite have phrases
pretraining = ["objects365v1", "GoldG", "CC3M-lite"]
