"""OV-COCO 48/17, tested 80-way: all words of COCO compete, on all of val2017.

python tools/train.py configs/kdeov/kdeov_n_ovcoco_80.py
"""

_base_ = "./kdeov_n_ovcoco.py"
val_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/ov_coco_val_80.json")
)
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="OV-COCO 48/17, val2017, 80-way: all words of COCO",
    ann_file="data/coco/annotations/ov_coco_val_80.json",
)
test_evaluator = val_evaluator
test_cfg = dict(type="TestLoop", _delete_=True)  # detection alone
