"""The whole system on shapes: GroupNorm in the spatial projection.

python tools/train.py configs/kdeov/parts/shapes_projection_gn.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(
    bbox_head=dict(
        head_module=dict(projection_norm=dict(type="GN", num_groups=32, _delete_=True))
    )
)
