"""The one-stage student's distillation on the two-stage detector.

Cosine and relations, and proposals of objects without a label are no background.
    python tools/train.py configs/vild/vild_kdeov_r18_shapes.py
"""

_base_ = "./vild_r18_shapes.py"
distances = dict(
    _delete_=True,
    cosine=dict(type="CosineDistance", loss_weight=0.5),
    relation=dict(type="RelationalDistance", loss_weight=0.75),
)
model = dict(distill=dict(region=dict(distances=distances, background=False)))
