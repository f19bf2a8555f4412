"""The ceiling of the hard built-in world: boxes of all 501 classes, no teacher.

Not measured yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_hard_oracle.py
"""

_base_ = "./kdeov_n_shapes_hard_nodistill.py"
train_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/instances_train_all.json")
)
doctor = dict(accept=["novel boxes"])  # on purpose
