"""ViLD on OV-COCO 48/17: docs/data.md. Not measured yet.

python tools/train.py configs/vild/vild_r50_ovcoco.py
"""

_base_ = [
    "../_base_/models/vild_r50_fpn_clip.py",
    "../_base_/datasets/ov_coco.py",
    "../_base_/schedules/sgd_135k.py",
]
train_dataloader = dict(batch_size=2)  # on each of 8 GPUs
