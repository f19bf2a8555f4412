"""The demo with cross-attention from locations to words.

The other fusion of the original design. About 8 minutes on 2 cores; AP not measured
yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_attention.py
"""

_base_ = "./kdeov_n_shapes.py"
model = dict(
    fusion=dict(
        type="CrossAttentionFusion",
        in_channels={{_base_.channels}},
        text_dims={{_base_.embed_dims}},
        widen_factor={{_base_.widen_factor}},
    )
)
