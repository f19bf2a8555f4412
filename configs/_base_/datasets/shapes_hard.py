"""The hard built-in world: boxes of 359 base classes, 501 words at test time.

Written by ``python tools/make_shapes.py --world hard``. LVIS's rules, images of 320 px.
"""

_base_ = "./shapes_1203.py"
data_root = "data/shapes_hard/"
image_size = 320
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (image_size, image_size)
dataset = dict(type="ShapesHardDataset", data_root=data_root)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="shapes-hard val, all 501 words",
    ann_file=data_root + "annotations/instances_val.json",
)
test_evaluator = val_evaluator
