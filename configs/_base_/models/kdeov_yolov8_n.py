"""The student: YOLOv8-n backbone and neck, open-vocabulary head, no fusion.

For YOLOv5's backbone, change one line:
``model = dict(backbone=dict(type='mmyolo.YOLOv5CSPDarknet'))``.
"""

deepen_factor, widen_factor = 0.33, 0.25
channels = [256, 512, 1024]
strides = [8, 16, 32]
embed_dims = 128
norm_cfg = dict(type="BN", momentum=0.03, eps=0.001)
act_cfg = dict(type="SiLU", inplace=True)

model = dict(
    type="KDEOVDetector",
    data_preprocessor=dict(
        type="BatchPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0] * 3,
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="mmyolo.YOLOv8CSPDarknet",
        deepen_factor=deepen_factor,
        widen_factor=widen_factor,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    neck=dict(
        type="mmyolo.YOLOv8PAFPN",
        deepen_factor=deepen_factor,
        widen_factor=widen_factor,
        in_channels=channels,
        out_channels=channels,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    text_encoder=dict(type="CLIPTextEncoder", model="shapes"),
    bbox_head=dict(
        type="OVHead",
        head_module=dict(
            type="mmdet.OVHeadModule",
            embed_dims=embed_dims,
            in_channels=channels,
            widen_factor=widen_factor,
            featmap_strides=strides,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            projection_norm=norm_cfg,
            l2_norm=True,
            prior_size=160,
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
    teacher=dict(type="CLIPImageTeacher", model="shapes"),
    distill=dict(
        region=dict(
            type="RegionDistillation",
            distances=dict(
                cosine=dict(type="CosineDistance", loss_weight=0.5),
                relation=dict(type="RelationalDistance", loss_weight=0.75),
            ),
        )
    ),
    vocabulary=dict(size=80, min_size=40),
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
        max_per_img=100,
    ),
)
