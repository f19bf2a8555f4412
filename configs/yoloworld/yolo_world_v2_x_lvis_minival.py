"""YOLO-World v2 X on LVIS minival, zero-shot. Published: AP 35.4; not measured.

python tools/test.py configs/yoloworld/yolo_world_v2_x_lvis_minival.py FILE.pth
"""

_base_ = "./yolo_world_v2_l_lvis_minival.py"
load_from = "yolo_world_v2_x_obj365v1_goldg_cc3mlite_pretrain-8698fbfa.pth"
widen_factor = 1.25
model = dict(
    backbone=dict(widen_factor=widen_factor),
    fusion=dict(widen_factor=widen_factor),
    bbox_head=dict(head_module=dict(widen_factor=widen_factor)),
)
