"""The whole system on OV-LVIS: GroupNorm in the spatial projection.

python tools/train.py configs/kdeov/parts/ovlvis_projection_gn.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(
    bbox_head=dict(
        head_module=dict(projection_norm=dict(type="GN", num_groups=32, _delete_=True))
    )
)
