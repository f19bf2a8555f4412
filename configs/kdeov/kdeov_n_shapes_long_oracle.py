"""The long schedule's ceiling: boxes of all 360 classes are given, no teacher.

About 16 minutes on 2 cores; AP not measured yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_long_oracle.py
"""

_base_ = "./kdeov_n_shapes_long.py"
model = dict(teacher=None, distill=None)
train_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/instances_train_all.json")
)
doctor = dict(accept=["novel boxes"])  # on purpose
