"""ResNet-50, behind 1x1 convolutions to 128 channels of each level.

python tools/train.py configs/kdeov/ablations/backbone_resnet50.py
"""

_base_ = "./default.py"
channels = [128, 128, 128]
pafpn = dict(
    type="mmyolo.YOLOv8PAFPN",
    deepen_factor={{_base_.deepen_factor}},
    in_channels=channels,
    out_channels=channels,
)
model = dict(
    backbone=dict(
        _delete_=True,
        type="mmdet.ResNet",
        depth=50,
        out_indices=(1, 2, 3),
        norm_eval=False,
        style="pytorch",
    ),
    neck=[
        dict(
            type="mmdet.ChannelMapper",
            in_channels=[512, 1024, 2048],
            out_channels=128,
            kernel_size=1,
            norm_cfg={{_base_.norm_cfg}},
        ),
        pafpn,
    ],
    bbox_head=dict(head_module=dict(in_channels=channels, widen_factor=1.0)),
)
