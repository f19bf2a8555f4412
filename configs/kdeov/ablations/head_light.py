"""A light head: separable convolutions, and one box for an object without suppression.

python tools/train.py configs/kdeov/ablations/head_light.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(head_module=dict(light=True, one_to_one=True)),
    test_cfg=dict(nms=None),
)
