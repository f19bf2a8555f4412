"""The document's losses: global InfoNCE and local attention beside cross-entropy.

python tools/train.py configs/seg/seg_shapes_document.py
"""

_base_ = "./seg_shapes.py"
model = dict(
    distill=dict(
        _delete_=True,
        whole=dict(
            type="ImageDistillation",
            projection=dict(type="MeanEmbedding", embed_dims=128),
            distances=dict(
                contrast=dict(type="ContrastiveDistance", loss_weight=0.03, same=2.0)
            ),
        ),
        local=dict(
            type="AttentionDistillation",
            distances=dict(cosine=dict(type="CosineDistance", loss_weight=0.03)),
        ),
    )
)
