"""YOLOv8-n and its neck as an image tower of CLIP's.

The backbone, neck and global head of ``configs/kdeov/kdeov_n_shapes_joint.py``, whose
checkpoint serves here too.
"""

deepen_factor, widen_factor = 0.33, 0.25
channels = [256, 512, 1024]
embed_dims = 128
norm_cfg = dict(type="BN", momentum=0.03, eps=0.001)
act_cfg = dict(type="SiLU", inplace=True)

model = dict(
    type="ImageTextModel",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
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
    teacher=dict(type="CLIPImageTeacher", model="shapes"),
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels=channels,
            embed_dims=embed_dims,
            widen_factor=widen_factor,
            norm=True,
        ),
    ),
)
