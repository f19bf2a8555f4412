"""Crops by ViLD's L1 alone, at ViLD's weight.

python tools/train.py configs/kdeov/hard/l1.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                l1=dict(type="L1Distance", loss_weight=0.5),
            )
        )
    )
)
