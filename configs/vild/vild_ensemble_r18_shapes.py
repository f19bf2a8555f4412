"""ViLD-ensemble: one head learns from words, one from the teacher, and both vote.

python tools/train.py configs/vild/vild_ensemble_r18_shapes.py
"""

_base_ = "./vild_r18_shapes.py"
model = dict(roi_head=dict(image_head=_base_.bbox_head, base="ShapesDataset"))
