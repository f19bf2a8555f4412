"""The hard built-in world: crowded scenes, small objects, a teacher that errs.

``tools/make_shapes.py --world hard`` draws it. Rare classes have no box in training;
the figures are LVIS's AP, APr, APc and APf.
    python tools/train.py configs/kdeov/kdeov_n_shapes_hard.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n_hard.py",
    "../_base_/datasets/shapes_hard.py",
    "../_base_/schedules/adamw_shapes.py",
]
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.002))
