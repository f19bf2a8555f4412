"""The original KDEOV design, as its documents describe it.

Global distillation and InfoNCE, FiLM by the vocabulary's mean, GroupNorm and L2, grid
default boxes; nothing is learnt from boxes.

    python tools/train.py configs/kdeov/ablations/seed.py
"""

_base_ = "./feature_alignment.py"
model = dict(
    fusion=dict(
        type="FiLMFusion",
        in_channels={{_base_.channels}},
        text_dims={{_base_.embed_dims}},
        widen_factor={{_base_.widen_factor}},
    ),
    bbox_head=dict(
        supervised=False,
        head_module=dict(
            type="mmdet.GridHeadModule",
            projection_norm=dict(type="GN", num_groups=32, _delete_=True),
        ),
    ),
)
find_unused_parameters = True  # several processes: the spatial projection is unused
doctor = dict(accept=["no gradient"])  # on purpose
