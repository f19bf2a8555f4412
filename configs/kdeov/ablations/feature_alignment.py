"""The original design's FeatureAlignment loss: image cosine and InfoNCE.

On this detector, trained on boxes. The captions name novel classes too.

    python tools/train.py configs/kdeov/ablations/feature_alignment.py
"""

_base_ = "./default.py"
train_pipeline = _base_.train_pipeline
train_pipeline.insert(
    1, dict(type="LoadCaptions", ann_file="data/shapes/annotations/captions_train.json")
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    distill=dict(
        _delete_=True,
        image=dict(
            type="GlobalDistillation",
            projection=dict(
                type="GlobalProjection",
                in_channels={{_base_.channels}},
                embed_dims={{_base_.embed_dims}},
                widen_factor={{_base_.widen_factor}},
            ),
            distances=dict(cosine=dict(type="CosineDistance", loss_weight=4.0)),
            contrast=dict(type="InfoNCE", loss_weight=2.0),
        ),
    )
)
