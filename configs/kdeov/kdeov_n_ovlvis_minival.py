"""OV-LVIS 866/337, tested on minival: the images of val that are in val2017.

python tools/train.py configs/kdeov/kdeov_n_ovlvis_minival.py
"""

_base_ = "./kdeov_n_ovlvis.py"
val_dataloader = dict(dataset=dict(ann_file="annotations/lvis_v1_minival.json"))
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="OV-LVIS 866/337, LVIS v1 minival",
    ann_file="data/lvis/annotations/lvis_v1_minival.json",
)
test_evaluator = val_evaluator
test_cfg = dict(type="TestLoop", _delete_=True)  # detection alone
