"""The teacher's dense map, of its patches (MaskCLIP's values).

python tools/train.py configs/kdeov/hard/dense_patches.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(
    distill=dict(
        _delete_=True,
        dense=dict(
            type="DenseDistillation",
            distances=dict(
                cosine=dict(type="CosineDistance", loss_weight=2.0),
                relation=dict(type="RelationalDistance", loss_weight=4.0),
            ),
        ),
    )
)
