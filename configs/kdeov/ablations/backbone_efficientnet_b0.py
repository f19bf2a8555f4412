"""EfficientNet-B0, with the neck and the head of `backbone_resnet50`.

python tools/train.py configs/kdeov/ablations/backbone_efficientnet_b0.py
"""

_base_ = "./backbone_resnet50.py"
model = dict(
    backbone=dict(
        _delete_=True, type="mmdet.EfficientNet", arch="b0", out_indices=(3, 4, 5)
    ),
    neck=[
        dict(
            type="mmdet.ChannelMapper",
            in_channels=[40, 112, 320],
            out_channels=128,
            kernel_size=1,
            norm_cfg={{_base_.norm_cfg}},
        ),
        {{_base_.pafpn}},
    ],
)
