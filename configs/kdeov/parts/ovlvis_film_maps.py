"""The whole system on OV-LVIS: FiLM of the feature maps.

python tools/train.py configs/kdeov/parts/ovlvis_film_maps.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(
    bbox_head=dict(head_module=dict(adapter=None)),
    fusion=dict(
        type="FiLMFusion",
        in_channels={{_base_.channels}},
        text_dims=512,
        widen_factor={{_base_.widen_factor}},
    ),
)
