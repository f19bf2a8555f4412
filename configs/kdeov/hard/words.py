"""Crops by distributions over the words of the step.

python tools/train.py configs/kdeov/hard/words.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(
    distill=dict(
        region=dict(
            distances=dict(
                _delete_=True,
                words=dict(type="WordDistance", loss_weight=3.0),
            )
        )
    )
)
