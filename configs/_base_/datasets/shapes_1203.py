"""The built-in world of LVIS's size: boxes of 866 base classes, 1203 words at test.

Written by ``python tools/make_shapes.py --world 1203``.
"""

_base_ = "./shapes.py"
data_root = "data/shapes_1203/"
dataset = dict(
    type="Shapes1203Dataset",
    data_root=data_root,
    data_prefix=dict(img="images/"),  # LVIS names a file with its folder
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(
    rules=("lvis", "lvis-fixed"),
    protocol="shapes-1203 val, all 1203 words",
    ann_file=data_root + "annotations/instances_val.json",
    reliability=True,
)
test_evaluator = val_evaluator
