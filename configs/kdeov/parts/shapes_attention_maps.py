"""The whole system on shapes: locations attend to the words, no FiLM.

python tools/train.py configs/kdeov/parts/shapes_attention_maps.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(
    bbox_head=dict(head_module=dict(adapter=None)),
    fusion=dict(
        type="CrossAttentionFusion",
        in_channels={{_base_.channels}},
        text_dims={{_base_.embed_dims}},
        widen_factor={{_base_.widen_factor}},
    ),
)
