"""The demo with the original design's norm: GroupNorm, then L2.

Does not fold into one convolution, as BatchNorm does. About 7 minutes on 2 cores; AP
not measured yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_gn.py
"""

_base_ = "./kdeov_n_shapes.py"
model = dict(
    bbox_head=dict(
        head_module=dict(
            projection_norm=dict(type="GN", num_groups=32, _delete_=True), l2_norm=True
        )
    )
)
