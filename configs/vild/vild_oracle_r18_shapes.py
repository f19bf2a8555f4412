"""The ceiling: boxes of all 360 classes are given, no teacher.

python tools/train.py configs/vild/vild_oracle_r18_shapes.py
"""

_base_ = "./vild_text_r18_shapes.py"
train_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/instances_train_all.json")
)
doctor = dict(accept=["novel boxes"])  # on purpose
