"""Crops by cosine alone.

python tools/train.py configs/kdeov/ablations/region_cosine.py
"""

_base_ = "./default.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                cosine=dict(type="CosineDistance", loss_weight=8.0),
            )
        )
    )
)
