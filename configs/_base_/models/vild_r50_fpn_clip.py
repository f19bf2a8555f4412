"""ViLD's detector on ResNet-50 and FPN, with OpenAI's CLIP ViT-B/32.

The backbone begins with ImageNet's weights. Two branches, one for the words and one for
the teacher (ViLD-ensemble), each of 2 fully connected layers; for 4 convolutions before
them: ``model=dict(roi_head=dict(bbox_head=dict(num_shared_convs=4)))``.
"""

_base_ = "./vild_r18_fpn.py"
clip = dict(model="ViT-B-32-quickgelu", pretrained="openai")
channels = 256
norm_cfg = None
bbox_head = dict(embed_dims=512, in_channels=channels, fc_out_channels=1024)
model = dict(
    backbone=dict(
        depth=50,
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048], out_channels=channels, norm_cfg=None),
    rpn_head=dict(
        in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[8])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=channels, roi_layer=dict(sampling_ratio=0), finest_scale=56
        ),
        bbox_head=bbox_head,
        image_head=dict(type="ViLDBBoxHead", num_shared_fcs=2, **bbox_head),
        base="OVCocoDataset",
    ),
    text_encoder=clip,
    teacher=clip,
    distill=dict(region=dict(proposals=20)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000),
        rcnn=dict(sampler=dict(num=512)),
    ),
    test_cfg=dict(
        rpn=dict(max_per_img=1000), rcnn=dict(score_thr=0.0, max_per_img=300)
    ),
)
