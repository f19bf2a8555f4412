"""The hard built-in world: crowded scenes, small objects, a teacher that errs.

``tools/make_shapes.py --world hard`` draws it. Rare classes have no box in training;
the figures are LVIS's AP, APr, APc and APf.
    python tools/train.py configs/kdeov/kdeov_n_shapes_hard.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n.py",
    "../_base_/datasets/shapes_hard.py",
    "../_base_/schedules/adamw_shapes.py",
]
model = dict(
    # from crops of base classes, as others start from ImageNet's
    backbone=dict(
        init_cfg=dict(
            type="Pretrained",
            checkpoint="configs/kdeov/hard/start.pth",
            prefix="backbone",
        )
    ),
    text_encoder=dict(model="shapes-hard"),
    teacher=dict(model="shapes-hard"),
    # its words are as alike as those of a real CLIP
    bbox_head=dict(head_module=dict(prior_size=320, centred=True)),
    # among so many things five boxes without a label are seldom an object
    distill=dict(region=dict(proposals=15)),
    vocabulary=dict(size=200, min_size=100),
    test_cfg=dict(max_per_img=1000),  # standard LVIS AP takes 300 of them
)
train_dataloader = dict(batch_size=8)  # a run is 15 minutes on two cores
optim_wrapper = dict(optimizer=dict(lr=0.002))
