"""AdamW, one cycle by iterations: warm-up, then cosine to 1 %."""

max_iters = 800
warmup_iters = 50
train_cfg = dict(type="ResumableTrainLoop", max_iters=max_iters, val_interval=1000000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.025),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        # the temperature and the score's bias have far to go
        custom_keys={
            "logit_scale": dict(lr_mult=10.0, decay_mult=0.0),
            "classifier.bias": dict(lr_mult=10.0, decay_mult=0.0),
        },
    ),
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
