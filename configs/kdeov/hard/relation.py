"""Crops by their relations alone.

python tools/train.py configs/kdeov/hard/relation.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                relation=dict(type="RelationalDistance", loss_weight=3.0),
            )
        )
    )
)
