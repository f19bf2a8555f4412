"""Any words: pixels learn the teacher's crops of what the student takes for objects."""

_base_ = "./seg_efficientnet_b0_clip.py"
model = dict(
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
    )
)
