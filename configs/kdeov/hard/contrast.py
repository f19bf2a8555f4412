"""Crops by InfoNCE among the regions of the batch.

python tools/train.py configs/kdeov/hard/contrast.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                contrast=dict(type="ContrastiveDistance", loss_weight=2.0),
            )
        )
    )
)
