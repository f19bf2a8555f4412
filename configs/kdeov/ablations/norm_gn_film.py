"""`norm_gn`, with FiLM for each word by itself.

python tools/train.py configs/kdeov/ablations/norm_gn_film.py
"""

_base_ = "./default.py"
model = dict(
    bbox_head=dict(
        head_module=dict(
            projection_norm=dict(type="GN", num_groups=32, _delete_=True),
            l2_norm=False,
            adapter=dict(
                type="ClassFiLM", text_dims={{_base_.embed_dims}}, shift=False
            ),
        )
    )
)
