"""The demo with a schedule three times as long.

Base / novel AP50 0.990 / 0.912, in 22 minutes on 2 cores.
    python tools/train.py configs/kdeov/kdeov_n_shapes_long.py
"""

_base_ = "./kdeov_n_shapes.py"
max_iters = 2400
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=100,
        T_max=max_iters - 100,
        eta_min_ratio=0.01,
    ),
]
