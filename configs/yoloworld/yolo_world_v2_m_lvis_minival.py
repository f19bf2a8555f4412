"""YOLO-World v2 M on LVIS minival, zero-shot. Published: AP 30.0; not measured.

python tools/test.py configs/yoloworld/yolo_world_v2_m_lvis_minival.py FILE.pth
"""

_base_ = "./yolo_world_v2_s_lvis_minival.py"
load_from = "yolo_world_v2_m_obj365v1_goldg_pretrain-c6237d5b.pth"
channels = [256, 512, 768]
size = dict(deepen_factor=0.67, widen_factor=0.75)
model = dict(
    backbone=dict(last_stage_out_channels=768, **size),
    fusion=dict(in_channels=channels, out_channels=channels, **size),
    bbox_head=dict(head_module=dict(in_channels=channels, widen_factor=0.75)),
)
