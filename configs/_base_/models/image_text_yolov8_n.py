"""YOLOv8-n and its neck as an image tower of CLIP's.

Its parts are those of ``configs/kdeov/kdeov_n_shapes_joint.py``, whose checkpoint
serves here too.
"""

_base_ = "./kdeov_yolov8_n.py"
model = dict(
    _delete_=True,
    type="ImageTextModel",
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone={{_base_.model.backbone}},
    neck={{_base_.model.neck}},
    text_encoder={{_base_.model.text_encoder}},
    teacher={{_base_.model.teacher}},
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels={{_base_.channels}},
            embed_dims={{_base_.embed_dims}},
            widen_factor={{_base_.widen_factor}},
            norm=True,
            pooling="attention",
        ),
    ),
)
