"""The whole system on OV-COCO: FiLM of the feature maps.

python tools/train.py configs/kdeov/parts/ovcoco_film_maps.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(
    bbox_head=dict(head_module=dict(adapter=None)),
    fusion=dict(
        type="FiLMFusion",
        in_channels={{_base_.channels}},
        text_dims=512,
        widen_factor={{_base_.widen_factor}},
    ),
)
