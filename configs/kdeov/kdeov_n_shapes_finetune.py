"""Eight new classes for the demo's student, which keeps the words that it knew.

What it already finds in the new pictures is labelled beside one's own boxes
(``kept.json``), and the teacher sees what is left: README.md, "Fine-tune without
forgetting", has the commands and the figures.
    python tools/train.py configs/kdeov/kdeov_n_shapes_finetune.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n.py",
    "../_base_/datasets/shapes_8.py",
    "../_base_/schedules/adamw.py",
]
load_from = "work_dirs/kdeov_n_shapes/iter_1600.pth"
kept = "annotations/kept.json"
train_dataloader = dict(dataset=dict(ann_file=kept, vocabulary=_base_.data_root + kept))
# the labelled boxes are learnt by their words alone: CLIP may not know these
model = dict(distill=dict(region=dict(sources=("own",), warmup=0.0)))
train_cfg = dict(max_iters=100)
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 10
param_scheduler[1].T_max, param_scheduler[1].end = 90, 100
