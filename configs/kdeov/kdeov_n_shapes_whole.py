"""All parts of the system on the built-in world, trained together.

The demo's student with FiLM for each word by itself, and a head for whole images that
learns the teacher's embeddings of their objects and, by InfoNCE, captions.
    python tools/train.py configs/kdeov/kdeov_n_shapes_whole.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/kdeov_yolov8_n.py",
    "../_base_/datasets/shapes_images.py",
    "../_base_/schedules/adamw_shapes_1600.py",
]
film = dict(type="ClassFiLM", text_dims=_base_.embed_dims, shift=False)
model = dict(
    bbox_head=dict(head_module=dict(adapter=film)),
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels=_base_.channels,
            embed_dims=_base_.embed_dims,
            widen_factor=_base_.widen_factor,
            norm=True,
            pooling="attention",
        ),
        distances=dict(cosine=dict(type="CosineDistance", loss_weight=0.5)),
        contrast=dict(type="InfoNCE", loss_weight=0.5),
        sources=("truth", "own"),
        target="regions",
        crops=1.0,
        crop_sizes=(64, 96, 160),
    ),
)
test_cfg = dict(type="TestSuiteLoop", others=_base_.other_tests)
