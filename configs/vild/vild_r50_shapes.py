"""The same on ResNet-50, from random weights.

python tools/train.py configs/vild/vild_r50_shapes.py
"""

_base_ = "./vild_r18_shapes.py"
model = dict(backbone=dict(depth=50), neck=dict(in_channels=[256, 512, 1024, 2048]))
