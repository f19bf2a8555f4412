"""CLIP to segmentation on EfficientNet-B0 and OpenAI's CLIP ViT-B/32."""

embed_dims = 512
clip = dict(model="ViT-B-32-quickgelu", pretrained="openai")
model = dict(
    type="SegStudent",
    label_stride=2,
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_seg=True,
        seg_pad_value=-2,
    ),
    backbone=dict(type="mmdet.EfficientNet", arch="b0", out_indices=(2, 3, 4, 5)),
    proj=dict(
        type="PixelProjection",
        in_channels=[24, 40, 112, 320],
        embed_dims=embed_dims,
        hidden_channels=128,
    ),
    seg_head=dict(type="OpenSegHead", embed_dims=embed_dims, temperature=0.02),
    text_encoder=dict(type="CLIPTextEncoder", **clip),
    teacher=dict(type="CLIPImageTeacher", **clip),
)
