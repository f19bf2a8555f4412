"""FiLM of the location's embedding for each word by itself.

python tools/train.py configs/kdeov/hard/class_film.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(
    bbox_head=dict(
        head_module=dict(
            adapter=dict(type="ClassFiLM", text_dims={{_base_.embed_dims}}, shift=False)
        )
    )
)
