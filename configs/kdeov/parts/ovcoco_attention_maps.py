"""The whole system on OV-COCO: locations attend to the words, no FiLM.

python tools/train.py configs/kdeov/parts/ovcoco_attention_maps.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(
    bbox_head=dict(head_module=dict(adapter=None)),
    fusion=dict(
        type="CrossAttentionFusion",
        in_channels={{_base_.channels}},
        text_dims=512,
        widen_factor={{_base_.widen_factor}},
    ),
)
