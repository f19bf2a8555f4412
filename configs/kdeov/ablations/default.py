"""The demo's student on the table's schedule; the parent of all rows.

Half the demo's batch, 400 iterations: under two minutes on 2 cores, so that every
row can be run with several seeds. `tools/studies/run_ablations.py` runs them all.

    python tools/train.py configs/kdeov/ablations/default.py
"""

_base_ = "../kdeov_n_shapes.py"
max_iters = 400
warmup_iters = 40
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=warmup_iters,
        T_max=max_iters - warmup_iters,
        eta_min_ratio=0.01,
    ),
]
