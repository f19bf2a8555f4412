"""Pascal Context: 59 classes, other pixels are not labelled.

docs/data.md says what to download and where to put it.
"""

_base_ = "./voc_seg.py"
data_root = "data/VOCdevkit/VOC2010/"
folders = dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext")
train_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset",
        data_root=data_root,
        ann_file="ImageSets/SegmentationContext/train.txt",
        data_prefix=folders,
    )
)
val_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset",
        data_root=data_root,
        ann_file="ImageSets/SegmentationContext/val.txt",
        data_prefix=folders,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(protocol="Pascal Context val, 59 classes")
test_evaluator = val_evaluator
