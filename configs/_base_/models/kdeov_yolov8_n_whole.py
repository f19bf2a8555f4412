"""The whole system: boxes, FiLM, crops' embeddings, and a head for whole images.

The head for whole images learns CLIP's embedding of the image and, by InfoNCE, of a
caption of it. FiLM is in the form that the ablation table finds best: each word by
itself, scale alone, which folds.
"""

_base_ = "./kdeov_yolov8_n_clip.py"
model = dict(
    bbox_head=dict(
        head_module=dict(adapter=dict(type="ClassFiLM", text_dims=512, shift=False))
    ),
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels={{_base_.channels}},
            embed_dims=512,
            widen_factor={{_base_.widen_factor}},
            norm=True,
            pooling="attention",
        ),
        distances=dict(cosine=dict(type="CosineDistance", loss_weight=0.5)),
        contrast=dict(type="InfoNCE", loss_weight=0.5),
    ),
)
