"""A second mouth for the demo's student: embeddings of whole images.

The detector of kdeov_n_shapes.py stays as it is, to the bit; a head of 0.3 M parameters
learns on its features what the teacher says of objects and of scenes.
    python tools/train.py configs/kdeov/kdeov_n_shapes.py
    python tools/train.py configs/kdeov/kdeov_n_shapes_joint.py
"""

_base_ = "./ablations/default.py"  # the demo's student, 800 iterations
load_from = "work_dirs/kdeov_n_shapes/iter_1600.pth"
custom_hooks = []  # a moving average would round the detector
model = dict(
    frozen=True,
    distill=None,
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels={{_base_.channels}},
            embed_dims={{_base_.embed_dims}},
            widen_factor={{_base_.widen_factor}},
            norm=True,
        ),
        distances=dict(
            cosine=dict(type="CosineDistance", loss_weight=0.5),
            relation=dict(type="RelationalDistance", loss_weight=0.75),
        ),
        sources=("truth", "own"),
        target="regions",
        crops=2.0,
        crop_sizes=(64, 96, 160),
        calibrate=0.1,
        warmup=0,
    ),
)
