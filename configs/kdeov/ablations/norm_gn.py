"""Embeddings of any length: GroupNorm, no L2 norm.

python tools/train.py configs/kdeov/ablations/norm_gn.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(
        head_module=dict(
            projection_norm=dict(type="GN", num_groups=32, _delete_=True), l2_norm=False
        )
    )
)
