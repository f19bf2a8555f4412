"""The one-stage student's distillation on the two-stage detector. Not measured yet.

python tools/train.py configs/vild/vild_kdeov_r50_ovcoco.py
"""

_base_ = "./vild_r50_ovcoco.py"
distances = dict(
    _delete_=True,
    cosine=dict(type="CosineDistance", loss_weight=0.5),
    relation=dict(type="RelationalDistance", loss_weight=0.75),
)
model = dict(distill=dict(region=dict(distances=distances, background=False)))
