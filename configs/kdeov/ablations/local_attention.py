"""Locations that the teacher's image embedding attends to.

python tools/train.py configs/kdeov/ablations/local_attention.py
"""

_base_ = "./default.py"
model = dict(
    distill=dict(
        _delete_=True,
        attention=dict(
            type="AttentionDistillation",
            distances=dict(cosine=dict(type="CosineDistance", loss_weight=4.0)),
        ),
    )
)
