"""The demo with FiLM: features modulated by the mean of the words.

The fusion of the original design, to be compared. About 7 minutes on 2 cores; AP not
measured yet.
    python tools/train.py configs/kdeov/kdeov_n_shapes_film.py
"""

_base_ = "./kdeov_n_shapes.py"
model = dict(
    fusion=dict(
        type="FiLMFusion",
        in_channels={{_base_.channels}},
        text_dims={{_base_.embed_dims}},
        widen_factor={{_base_.widen_factor}},
    )
)
