"""The runtime, and AdamW for COCO and LVIS: 84,000 iterations of 128 images.

About 100 epochs. Optimizer and batch of YOLOE (AdamW 2e-3, decay 0.025, 8 GPUs of 16
images), length and moving average of YOLO-World. ``--auto-scale-lr`` fits the rate to
other batches. In mixed precision on a GPU.
"""

_base_ = ["../default_runtime.py", "./adamw.py"]
max_iters = 84_000
warmup_iters = 1_000
train_cfg = dict(max_iters=max_iters, val_interval=14_000)
optim_wrapper = dict(type="GPUAmpOptimWrapper", loss_scale="dynamic")
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
auto_scale_lr = dict(enable=False, base_batch_size=128)
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(interval=2_000, max_keep_ckpts=2)
)
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="ExpMomentumEMA",
        momentum=0.0001,
        gamma=2000,
        update_buffers=True,
        priority=49,
    )
]
