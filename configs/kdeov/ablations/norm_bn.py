"""Embeddings of any length: BatchNorm, no L2 norm.

python tools/train.py configs/kdeov/ablations/norm_bn.py
"""

_base_ = "./default.py"
model = dict(bbox_head=dict(head_module=dict(l2_norm=False)))
