"""Plain YOLOv8-n for 80 closed classes: what step and inference times are held to."""

_base_ = "./kdeov_yolov8_n.py"
model = dict(
    _delete_=True,
    type="mmyolo.YOLODetector",
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone={{_base_.model.backbone}},
    neck={{_base_.model.neck}},
    bbox_head=dict(
        type="mmyolo.YOLOv8Head",
        head_module=dict(
            type="mmyolo.YOLOv8HeadModule",
            num_classes=80,
            in_channels={{_base_.channels}},
            widen_factor={{_base_.widen_factor}},
            featmap_strides={{_base_.strides}},
            norm_cfg={{_base_.norm_cfg}},
            act_cfg={{_base_.act_cfg}},
        ),
        prior_generator={{_base_.model.bbox_head.prior_generator}},
        bbox_coder={{_base_.model.bbox_head.bbox_coder}},
        loss_bbox={{_base_.model.bbox_head.loss_bbox}},
        loss_dfl={{_base_.model.bbox_head.loss_dfl}},
    ),
    train_cfg=dict(
        assigner=dict(
            type="mmyolo.BatchTaskAlignedAssigner",
            num_classes=80,
            topk=10,
            alpha=0.5,
            beta=6.0,
            eps=1e-9,
            use_ciou=True,
        )
    ),
    test_cfg={{_base_.model.test_cfg}},
)
