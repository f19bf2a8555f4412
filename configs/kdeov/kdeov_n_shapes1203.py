"""The whole LVIS path on the built-in world: 405 f, 461 c and 337 r of 1203 classes.

Rare classes have no box in training; ``tools/make_shapes.py --world 1203`` draws it.
AP / APr 0.860 / 0.785, in 12 to 20 minutes on one core.
    python tools/train.py configs/kdeov/kdeov_n_shapes1203.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n.py",
    "../_base_/datasets/shapes_1203.py",
    "../_base_/schedules/adamw_shapes_1600.py",
]
model = dict(
    text_encoder=dict(model="shapes-1203"),
    teacher=dict(model="shapes-1203"),
    vocabulary=dict(size=200, min_size=100),
    test_cfg=dict(max_per_img=1000),  # standard LVIS AP takes 300 of them
)
optim_wrapper = dict(optimizer=dict(lr=0.002))  # of 0.001, 0.002 and 0.004 the best
