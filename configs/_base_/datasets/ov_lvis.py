"""OV-LVIS: boxes of the 866 frequent and common classes; 1203 words at test time.

docs/data.md says what to download; ``tools/prepare_splits.py lvis`` writes the files.
Images of classes that are in fewer than 1 of 1000 images are repeated (repeat factor
sampling, Gupta et al., 2019).
"""

_base_ = "./ov_coco.py"
data_root = "data/lvis/"
dataset = dict(
    type="OVLVISDataset",
    data_root=data_root,
    data_prefix=dict(img=""),  # LVIS names a file with its folder, train2017/...
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ClassBalancedDataset",
        oversample_thr=1e-3,
        dataset=dict(
            vocabulary="base",
            ann_file="annotations/lvis_v1_train_base.json",
            filter_cfg=dict(filter_empty_gt=False),
            pipeline={{_base_.train_pipeline}},
            **dataset,
        ),
    )
)
val_dataloader = dict(
    dataset=dict(vocabulary="all", ann_file="annotations/lvis_v1_val.json", **dataset)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    rules=("lvis", "lvis-fixed"),
    protocol="OV-LVIS 866/337, LVIS v1 val",
    ann_file=data_root + "annotations/lvis_v1_val.json",
)
test_evaluator = val_evaluator
