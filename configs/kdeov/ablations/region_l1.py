"""Crops by ViLD's L1 alone, at ViLD's weight.

The weight 0.5 of the sum over dimensions is 256 times their mean at 512 dimensions.

    python tools/train.py configs/kdeov/ablations/region_l1.py
"""

_base_ = "./default.py"
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
