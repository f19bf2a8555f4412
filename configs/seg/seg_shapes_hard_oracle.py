"""Hard world, the ceiling: masks of all 494 classes are given, no teacher.

python tools/train.py configs/seg/seg_shapes_hard_oracle.py
"""

_base_ = "./seg_shapes_hard_none.py"
train_dataloader = dict(dataset=dict(vocabulary="all"))
