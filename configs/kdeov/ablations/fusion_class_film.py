"""Fusion: FiLM of the location's embedding for each word by itself; folds.

python tools/train.py configs/kdeov/ablations/fusion_class_film.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(
        head_module=dict(
            adapter=dict(type="ClassFiLM", text_dims={{_base_.embed_dims}}, shift=False)
        )
    )
)
