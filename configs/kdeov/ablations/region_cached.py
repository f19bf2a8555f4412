"""Crops from a store: no teacher while training.

At the ground truth and at the boxes of an earlier student, the one of `none.py`, as
ViLD's proposals are those of an earlier detector. `prepare` is what
`tools/studies/run_ablations.py` runs before; by hand:

    python tools/cache_embeddings.py configs/kdeov/ablations/region_cached.py \
        --proposals work_dirs/none/iter_800.pth
    python tools/train.py configs/kdeov/ablations/region_cached.py
"""

_base_ = "./default.py"
prepare = [
    "tools/cache_embeddings.py configs/kdeov/ablations/region_cached.py "
    "--proposals {none}"
]
model = dict(
    teacher=dict(type="CachedTeacher", store="data/shapes_embeddings"),
    distill=dict(region=dict(sources=("truth", "stored"))),
)
default_hooks = dict(cache=dict(type="EmbeddingCacheHook"))
