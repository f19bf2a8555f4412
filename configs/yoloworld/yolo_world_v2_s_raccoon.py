"""YOLO-World v2 S fine-tuned on boxes of one's own: 160 photos, one word.

docs/custom_dataset.md says how to put the photos there. Not measured here.
    python tools/train.py configs/yoloworld/yolo_world_v2_s_raccoon.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../../kdeov_mm/yolo_world_v2_s.py",
    "../_base_/datasets/raccoon.py",
    "../_base_/schedules/adamw.py",
]
load_from = "yolo_world_v2_s_obj365v1_goldg_pretrain-55b943ea.pth"
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.05))
