"""COCO-Stuff 164k: 171 classes, all pixels but a few labelled.

docs/data.md says what to download and where to put it.
"""

_base_ = "./voc_seg.py"
data_root = "data/coco/"
train_dataloader = dict(
    dataset=dict(
        type="COCOStuffDataset",
        data_root=data_root,
        ann_file="",
        data_prefix=dict(img_path="train2017", seg_map_path="stuffthingmaps/train2017"),
    )
)
val_dataloader = dict(
    dataset=dict(
        type="COCOStuffDataset",
        data_root=data_root,
        ann_file="",
        data_prefix=dict(img_path="val2017", seg_map_path="stuffthingmaps/val2017"),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(protocol="COCO-Stuff 164k val2017, 171 classes")
test_evaluator = val_evaluator
