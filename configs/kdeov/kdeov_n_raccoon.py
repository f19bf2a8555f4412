"""A data set of your own: 160 real photos, VOC XML, one word, from scratch.

Shows the path, not the method: the tiny CLIP has never heard of raccoons, so the
word is a label like any other, and distillation is off. docs/custom_dataset.md says
how to put the photos there, and which lines give it a real CLIP. AP50 0.730 on the
40 test photos, in 9 minutes on 2 cores.
    python tools/train.py configs/kdeov/kdeov_n_raccoon.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n.py",
    "../_base_/datasets/raccoon.py",
    "../_base_/schedules/adamw.py",
]
model = dict(teacher=None, distill=None)
max_iters = 600
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=50,
        end=max_iters,
        T_max=max_iters - 50,
        eta_min_ratio=0.01,
    ),
]
