"""YOLO-World v2 S on COCO: zero-shot as it is, or fine-tuned. Not measured here.

Published zero-shot AP 36.6 of v2.1 S. The fine-tuning has its authors' optimizer, batch
and length (AdamW 2e-4, decay 0.05, 80 epochs of 8 x 16 images), not their mosaic.
    python tools/test.py configs/yoloworld/yolo_world_v2_s_coco.py FILE.pth
    python tools/train.py configs/yoloworld/yolo_world_v2_s_coco.py
"""

_base_ = [
    "../../kdeov_mm/yolo_world_v2_s.py",
    "../_base_/datasets/ov_coco.py",
    "../_base_/schedules/adamw_84k.py",
]
load_from = "yolo_world_v2_s_obj365v1_goldg_pretrain-55b943ea.pth"
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.05))
max_iters = 74_000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=1_000),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=1000, end=74000, T_max=73000),
]
every = dict(vocabulary="all", ann_file="annotations/ov_coco_val_80.json")
train_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/instances_train2017.json")
)
val_dataloader = dict(dataset=every)
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="COCO val2017, 80 words, boxes of Objects365 were seen",
    ann_file="data/coco/annotations/ov_coco_val_80.json",
)
test_evaluator = val_evaluator
