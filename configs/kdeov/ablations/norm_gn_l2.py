"""The norms of the original design: GroupNorm, then L2.

python tools/train.py configs/kdeov/ablations/norm_gn_l2.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(
        head_module=dict(projection_norm=dict(type="GN", num_groups=32, _delete_=True))
    )
)
