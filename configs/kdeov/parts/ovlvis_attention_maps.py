"""The whole system on OV-LVIS: locations attend to the words, no FiLM.

python tools/train.py configs/kdeov/parts/ovlvis_attention_maps.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(
    bbox_head=dict(head_module=dict(adapter=None)),
    fusion=dict(
        type="CrossAttentionFusion",
        in_channels={{_base_.channels}},
        text_dims=512,
        widen_factor={{_base_.widen_factor}},
    ),
)
