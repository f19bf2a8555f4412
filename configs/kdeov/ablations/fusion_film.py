"""Fusion: FiLM of the feature maps by the mean of the words.

python tools/train.py configs/kdeov/ablations/fusion_film.py
"""

_base_ = "./default.py"
model = dict(
    fusion=dict(
        type="FiLMFusion",
        in_channels={{_base_.channels}},
        text_dims={{_base_.embed_dims}},
        widen_factor={{_base_.widen_factor}},
    )
)
