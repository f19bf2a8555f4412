"""A light head, separable convolutions; peaks of the scores, nothing is suppressed.

python tools/train.py configs/kdeov/ablations/head_light.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(head_module=dict(light=True)),
    test_cfg=dict(nms=None),
)
