"""The teacher's crops of windows on a grid, for all pixels.

python tools/train.py configs/seg/seg_shapes_dense.py
"""

_base_ = "./seg_shapes.py"
model = dict(
    distill=dict(
        _delete_=True,
        dense=dict(
            type="DenseDistillation",
            window=48,
            stride=16,
            distances=dict(
                cosine=dict(type="CosineDistance", loss_weight=0.5),
                relation=dict(type="RelationalDistance", loss_weight=0.75),
            ),
        ),
    )
)
