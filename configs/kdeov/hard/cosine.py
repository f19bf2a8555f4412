"""Crops by cosine alone.

python tools/train.py configs/kdeov/hard/cosine.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
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
