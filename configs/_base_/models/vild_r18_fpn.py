"""ViLD on ResNet-18 and FPN from random weights, for images of 160 pixels."""

embed_dims = 128
channels = 64
norm_cfg = dict(type="BN")
bbox_head = dict(
    type="ViLDBBoxHead",
    embed_dims=embed_dims,
    in_channels=channels,
    num_shared_fcs=2,
    fc_out_channels=256,
)
model = dict(
    type="ViLDDetector",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="mmdet.ResNet",
        depth=18,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style="pytorch",
    ),
    neck=dict(
        type="mmdet.FPN",
        in_channels=[64, 128, 256, 512],
        out_channels=channels,
        num_outs=5,
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(
        type="mmdet.RPNHead",
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(
            type="AnchorGenerator",
            scales=[4],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="ViLDRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=channels,
            featmap_strides=[4, 8, 16, 32],
            finest_scale=28,
        ),
        bbox_head=bbox_head,
    ),
    text_encoder=dict(type="CLIPTextEncoder", model="shapes"),
    teacher=dict(type="CLIPImageTeacher", model="shapes"),
    distill=dict(
        region=dict(
            type="RegionDistillation",
            distances=dict(l1=dict(type="L1Distance", loss_weight=0.5)),
            background=True,
            warmup=0,
        )
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="mmdet.SparingAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=0.5,
            ),
            sampler=dict(
                type="RandomSampler",
                num=256,
                pos_fraction=0.5,
                neg_pos_ub=-1,
                add_gt_as_proposals=False,
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=1000,
            max_per_img=300,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(
            assigner=dict(
                type="mmdet.SparingAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=0.5,
            ),
            sampler=dict(
                type="RandomSampler",
                num=64,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000,
            max_per_img=300,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(
            multi_label=True,
            nms_pre=30000,
            score_thr=0.001,
            nms=dict(type="nms", iou_threshold=0.5),
            max_per_img=100,
        ),
    ),
)
