"""The whole image's embedding, by its relations to the batch's images.

    python tools/train.py configs/kdeov/ablations/global_relation.py
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
            distances=dict(relation=dict(type="RelationalDistance", loss_weight=1.0)),
        ),
    )
)
