"""Masks by words on COCO-Stuff: 156 classes labelled, 171 asked; windows of crops.

python tools/train.py configs/seg/seg_coco_stuff_open.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_open.py",
    "../_base_/datasets/coco_stuff.py",
    "../_base_/schedules/adamw_40k.py",
]
# without background there are no objects apart: crops on a grid
dense = dict(
    type="DenseDistillation",
    window=128,
    stride=64,
    distances=dict(
        cosine=dict(type="CosineDistance", loss_weight=0.5),
        relation=dict(type="RelationalDistance", loss_weight=0.75),
    ),
)
model = dict(seg_head=dict(background=False), distill=dict(_delete_=True, dense=dense))
train_dataloader = dict(dataset=dict(vocabulary="base"))
val_evaluator = dict(
    protocol="COCO-Stuff 164k val2017, zero-shot 156/15, generalised: 171 words"
)
test_evaluator = val_evaluator
visualizer = dict(type="SegVisualizer")
