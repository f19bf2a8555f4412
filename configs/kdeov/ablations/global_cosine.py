"""The whole image's embedding, by cosine (GAP, MLP, L2).

python tools/train.py configs/kdeov/ablations/global_cosine.py
"""

_base_ = "./default.py"
model = dict(
    distill=dict(
        _delete_=True,
        image=dict(
            type="GlobalDistillation",
            projection=dict(
                type="GlobalProjection",
                in_channels={{_base_.channels}},
                embed_dims={{_base_.embed_dims}},
                widen_factor={{_base_.widen_factor}},
            ),
            distances=dict(cosine=dict(type="CosineDistance", loss_weight=4.0)),
        ),
    )
)
