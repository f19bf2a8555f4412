"""Fusion: each location attends to the words.

python tools/train.py configs/kdeov/ablations/fusion_attention.py
"""

_base_ = "./default.py"
model = dict(
    fusion=dict(
        type="CrossAttentionFusion",
        in_channels={{_base_.channels}},
        text_dims={{_base_.embed_dims}},
        widen_factor={{_base_.widen_factor}},
    )
)
