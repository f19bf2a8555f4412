"""The teacher's dense map, of crops on a grid.

python tools/train.py configs/kdeov/ablations/dense_windows.py
"""

_base_ = "./default.py"
model = dict(
    distill=dict(
        _delete_=True,
        dense=dict(
            type="DenseDistillation",
            window=48,
            distances=dict(
                cosine=dict(type="CosineDistance", loss_weight=0.5),
                relation=dict(type="RelationalDistance", loss_weight=1.0),
            ),
        ),
    )
)
