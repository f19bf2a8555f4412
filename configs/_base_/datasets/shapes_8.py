"""400 pictures of a new domain: boxes of 8 classes, beside objects of no label.

Written by ``python tools/make_shapes.py --world 8``; a data set of your own looks the
same. The words are the categories of the file.
"""

_base_ = "./shapes.py"
data_root = "data/shapes_8/"
own = "annotations/instances_train_base.json"
dataset = dict(type="OVCocoDataset", data_root=data_root, vocabulary=data_root + own)
train_dataloader = dict(dataset=dict(ann_file=own, **dataset))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="shapes-8, the 8 new words alone, COCO AP",
    ann_file=data_root + "annotations/instances_val.json",
)
test_evaluator = val_evaluator
