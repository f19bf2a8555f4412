"""AdamW for label maps: 40,000 iterations of 16 images, warm-up, then cosine."""

_base_ = "./adamw.py"
max_iters, warmup_iters = 40000, 1000
train_cfg = dict(max_iters=max_iters, val_interval=4000)
optim_wrapper = dict(
    optimizer=dict(lr=0.0005),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=warmup_iters,
        end=max_iters,
        T_max=max_iters - warmup_iters,
        eta_min_ratio=0.01,
    ),
]
