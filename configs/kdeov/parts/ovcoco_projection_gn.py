"""The whole system on OV-COCO: GroupNorm in the spatial projection.

python tools/train.py configs/kdeov/parts/ovcoco_projection_gn.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(
    bbox_head=dict(
        head_module=dict(projection_norm=dict(type="GN", num_groups=32, _delete_=True))
    )
)
