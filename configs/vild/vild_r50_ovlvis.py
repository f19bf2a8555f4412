"""ViLD on OV-LVIS 866/337: docs/data.md. Not measured yet.

python tools/train.py configs/vild/vild_r50_ovlvis.py
"""

_base_ = [
    "../_base_/models/vild_r50_fpn_clip.py",
    "../_base_/datasets/ov_lvis.py",
    "../_base_/schedules/sgd_135k.py",
]
train_dataloader = dict(batch_size=2)  # on each of 8 GPUs
model = dict(
    roi_head=dict(base="OVLVISDataset"),
    vocabulary=dict(size=866, min_size=866),  # all of them, as ViLD
    test_cfg=dict(rcnn=dict(max_per_img=1000)),  # standard LVIS AP takes 300 of them
)
