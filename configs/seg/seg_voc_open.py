"""Masks by words on Pascal VOC 2012: 15 classes labelled, 20 asked.

python tools/train.py configs/seg/seg_voc_open.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_open.py",
    "../_base_/datasets/voc_seg.py",
    "../_base_/schedules/adamw_40k.py",
]
train_dataloader = dict(dataset=dict(vocabulary="base"))
val_evaluator = dict(
    protocol="Pascal VOC 2012 val, zero-shot 15/5, generalised: 20 words and background"
)
test_evaluator = val_evaluator
visualizer = dict(type="SegVisualizer")
