"""YOLO-World v2 L on LVIS minival, zero-shot. Published: AP 33.0; not measured.

python tools/test.py configs/yoloworld/yolo_world_v2_l_lvis_minival.py FILE.pth
"""

_base_ = "./yolo_world_v2_s_lvis_minival.py"
load_from = "yolo_world_v2_l_obj365v1_goldg_pretrain-a82b1fe3.pth"
channels = [256, 512, 512]
size = dict(deepen_factor=1.0, widen_factor=1.0)
model = dict(
    backbone=dict(last_stage_out_channels=512, **size),
    fusion=dict(in_channels=channels, out_channels=channels, **size),
    bbox_head=dict(head_module=dict(in_channels=channels, widen_factor=1.0)),
)
