"""`seg_shapes` with masks of 10 per cent of the images alone.

python tools/train.py configs/seg/seg_shapes_10.py
"""

_base_ = "./seg_shapes.py"
train_dataloader = dict(dataset=dict(labelled=0.1))
