"""The ceiling: boxes of all 501 classes, no teacher.

python tools/train.py configs/kdeov/hard/oracle.py
"""

_base_ = "./none.py"
train_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/instances_train_all.json")
)
doctor = dict(accept=["novel boxes"])  # on purpose
