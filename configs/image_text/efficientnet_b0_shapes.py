"""EfficientNet-B0 from random weights on the built-in world's scenes and captions.

python tools/train.py configs/image_text/efficientnet_b0_shapes.py
"""

_base_ = "./r50_shapes.py"
model = dict(
    backbone=dict(
        _delete_=True, type="mmdet.EfficientNet", arch="b0", out_indices=(3, 4, 5)
    ),
    global_head=dict(projection=dict(in_channels=[40, 112, 320])),
)
