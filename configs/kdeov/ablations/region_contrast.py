"""Crops by InfoNCE among the regions of the batch.

python tools/train.py configs/kdeov/ablations/region_contrast.py
"""

_base_ = "./default.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                contrast=dict(type="ContrastiveDistance", loss_weight=0.5),
            )
        )
    )
)
