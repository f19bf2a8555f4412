"""The document's student: a closed head, global InfoNCE and local attention.

The teacher's embeddings pass a learnt layer to the student's dimensions.
"""

_base_ = "./seg_efficientnet_b0_clip.py"
embed_dims = 256
model = dict(
    proj=dict(embed_dims=embed_dims),
    seg_head=dict(_delete_=True, type="ClosedSegHead", embed_dims=embed_dims),
    clip_proj=512,
    distill=dict(
        whole=dict(
            type="ImageDistillation",
            projection=dict(type="MeanEmbedding", embed_dims=embed_dims),
            distances=dict(
                contrast=dict(type="ContrastiveDistance", loss_weight=0.5, same=2.0)
            ),
        ),
        local=dict(
            type="AttentionDistillation",
            distances=dict(cosine=dict(type="CosineDistance", loss_weight=0.5)),
        ),
    ),
)
