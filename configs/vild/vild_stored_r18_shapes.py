"""A first detector's proposals, embedded once at 1x, as the documents have it.

The store has the boxes of the detector without distillation, scaled to the input, cut
at its border and without the smallest; a training step needs no teacher.
    python tools/train.py configs/vild/vild_text_r18_shapes.py
    python tools/cache_embeddings.py configs/vild/vild_stored_r18_shapes.py \
        --proposals work_dirs/vild_text_r18_shapes/iter_800.pth
    python tools/train.py configs/vild/vild_stored_r18_shapes.py
"""

_base_ = "./vild_r18_shapes.py"
prepare = [
    "tools/cache_embeddings.py configs/vild/vild_stored_r18_shapes.py "
    "--proposals {vild_text_r18_shapes}"
]
model = dict(
    teacher=dict(type="CachedTeacher", store="data/shapes_embeddings_vild"),
    distill=dict(region=dict(sources=("truth", "stored"), scales=(1.0,), proposals=20)),
)
default_hooks = dict(cache=dict(type="EmbeddingCacheHook"))
