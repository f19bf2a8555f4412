"""ResNet-50 as an image tower of CLIP's: 2048 -> 2048 -> 512, GELU, L2."""

embed_dims = 512
clip = dict(model="ViT-B-32-quickgelu", pretrained="openai")
model = dict(
    type="ImageTextModel",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="mmdet.ResNet",
        depth=50,
        out_indices=(3,),
        norm_cfg=dict(type="BN"),
        norm_eval=False,
        style="pytorch",
    ),
    text_encoder=dict(type="CLIPTextEncoder", **clip),
    teacher=dict(type="CLIPImageTeacher", **clip),
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels=[2048],
            hidden_dims=2048,
            embed_dims=embed_dims,
        ),
        contrast=dict(type="InfoNCE"),
    ),
)
