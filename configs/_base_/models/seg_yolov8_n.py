"""CLIP to segmentation on YOLOv8-n: four levels, pixel embeddings at stride 4."""

embed_dims = 128
norm_cfg = dict(type="BN", momentum=0.03, eps=0.001)
act_cfg = dict(type="SiLU", inplace=True)
model = dict(
    type="SegStudent",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0] * 3,
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_seg=True,
        seg_pad_value=-2,
    ),
    backbone=dict(
        type="mmyolo.YOLOv8CSPDarknet",
        deepen_factor=0.33,
        widen_factor=0.25,
        out_indices=(1, 2, 3, 4),
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    proj=dict(
        type="PixelProjection",
        in_channels=[32, 64, 128, 256],
        embed_dims=embed_dims,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    ),
    seg_head=dict(type="OpenSegHead", embed_dims=embed_dims, temperature=0.02),
    background_weight=0.2,
    text_encoder=dict(type="CLIPTextEncoder", model="shapes"),
    teacher=dict(type="CLIPImageTeacher", model="shapes"),
    # the objects that the student sees, labelled or not
    distill=dict(
        region=dict(
            type="RegionDistillation",
            sources=("own",),
            proposals=8,
            locations=100,
            background=True,
            distances=dict(
                cosine=dict(type="CosineDistance", loss_weight=0.5),
                relation=dict(type="RelationalDistance", loss_weight=0.75),
            ),
        )
    ),
)
