"""The same on 64 images of 224 px for a few steps: does it run on this machine?

python tools/train.py configs/seg/seg_voc_toy.py
"""

_base_ = "./seg_voc.py"
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap"),
    dict(type="Resize", scale=(224, 224), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
train_cfg = dict(max_iters=100, val_interval=100)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20)
]
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(indices=64, pipeline=pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(indices=64))
test_dataloader = val_dataloader
