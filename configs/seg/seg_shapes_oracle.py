"""The ceiling: masks of all 360 classes are given, no teacher.

python tools/train.py configs/seg/seg_shapes_oracle.py
"""

_base_ = "./seg_shapes_none.py"
train_dataloader = dict(dataset=dict(vocabulary="all"))
