"""`norm_bn`, with FiLM for each word by itself.

python tools/train.py configs/kdeov/ablations/norm_bn_film.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(
        head_module=dict(
            l2_norm=False,
            adapter=dict(
                type="ClassFiLM", text_dims={{_base_.embed_dims}}, shift=False
            ),
        )
    )
)
