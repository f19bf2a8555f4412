"""SGD for COCO and LVIS: 135,000 iterations of 16 images, about 20 epochs.

DetPro's schedule for ViLD (rate 0.02, decays after 16 and 19 epochs).
``--auto-scale-lr`` fits the rate to other batches.
"""

_base_ = "../default_runtime.py"
max_iters = 135_000
train_cfg = dict(type="ResumableTrainLoop", max_iters=max_iters, val_interval=27_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=2.5e-5),
    clip_grad=dict(max_norm=35.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[108_000, 128_000], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(
    logger=dict(interval=50), checkpoint=dict(interval=2_000, max_keep_ckpts=2)
)
custom_hooks = []  # no moving average
