"""A head for whole images on the demo's student, whose detector stays to the bit.

It learns on the detector's features what the teacher says of objects and of scenes, and
by InfoNCE the captions of the training scenes.
    python tools/train.py configs/kdeov/kdeov_n_shapes.py
    python tools/train.py configs/kdeov/kdeov_n_shapes_joint.py
"""

_base_ = "./kdeov_n_shapes_whole.py"
load_from = "work_dirs/kdeov_n_shapes/iter_1600.pth"
custom_hooks = []  # a moving average would round the detector
model = dict(
    frozen=True,
    distill=None,
    bbox_head=dict(head_module=dict(adapter=None)),  # as the demo's
    global_head=dict(
        distances=dict(relation=dict(type="RelationalDistance", loss_weight=0.75)),
        crops=2.0,
        calibrate=0.1,
        warmup=0,
    ),
)
# half the schedule
train_cfg = dict(max_iters=800)
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max, param_scheduler[1].end = 750, 800
