"""Crops by their relations alone.

python tools/train.py configs/kdeov/ablations/region_relation.py
"""

_base_ = "./default.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                relation=dict(type="RelationalDistance", loss_weight=0.75),
            )
        )
    )
)
