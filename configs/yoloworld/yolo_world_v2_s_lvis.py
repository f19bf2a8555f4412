"""YOLO-World v2 S on LVIS v1 val, zero-shot. Published: AP 17.3; not measured.

For other sizes begin with the `lvis_minival` leaf of that size.
    python tools/test.py configs/yoloworld/yolo_world_v2_s_lvis.py FILE.pth
"""

_base_ = "./yolo_world_v2_s_lvis_minival.py"
val_dataloader = dict(dataset=dict(ann_file="annotations/lvis_v1_val.json"))
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="LVIS v1 val, 1203 words, boxes of Objects365 were seen",
    ann_file="data/lvis/annotations/lvis_v1_val.json",
)
test_evaluator = val_evaluator
