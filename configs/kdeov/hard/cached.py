"""Crops from a store: the truth's and those of the student without a teacher.

`prepare` is what `tools/studies/run_ablations.py` runs before; by hand:
    python tools/cache_embeddings.py configs/kdeov/hard/cached.py \
        --proposals work_dirs/none/iter_1600.pth
    python tools/train.py configs/kdeov/hard/cached.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
prepare = [
    "tools/cache_embeddings.py configs/kdeov/hard/cached.py --proposals {hard/none}"
]
model = dict(
    teacher=dict(type="CachedTeacher", store="data/shapes_hard_embeddings"),
    distill=dict(region=dict(sources=("truth", "stored"))),
)
default_hooks = dict(cache=dict(type="EmbeddingCacheHook"))
