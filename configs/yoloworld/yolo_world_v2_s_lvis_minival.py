"""YOLO-World v2 S on LVIS minival, zero-shot. Published: AP 22.7; not measured.

The weights are a file of its authors (README.md); a training goes on with them and the
boxes of LVIS's frequent and common classes.
    python tools/test.py configs/yoloworld/yolo_world_v2_s_lvis_minival.py FILE.pth
"""

_base_ = [
    "../../kdeov_mm/yolo_world_v2_s.py",
    "../_base_/datasets/ov_lvis.py",
    "../_base_/schedules/adamw_84k.py",
]
load_from = "yolo_world_v2_s_obj365v1_goldg_pretrain-55b943ea.pth"
model = dict(test_cfg=dict(max_per_img=1000))  # standard LVIS AP takes 300 of them
val_dataloader = dict(dataset=dict(ann_file="annotations/lvis_v1_minival.json"))
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="LVIS v1 minival, 1203 words, boxes of Objects365 were seen",
    ann_file="data/lvis/annotations/lvis_v1_minival.json",
)
test_evaluator = val_evaluator
