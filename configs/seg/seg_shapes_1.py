"""`seg_shapes` with masks of 1 per cent of the images alone.

python tools/train.py configs/seg/seg_shapes_1.py
"""

_base_ = "./seg_shapes.py"
train_dataloader = dict(dataset=dict(labelled=0.01))
