"""Detector and a head for whole images together: objects, scenes and captions.

python tools/train.py configs/kdeov/hard/joint.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
captions = _base_.data_root + "annotations/captions_train.json"
train_pipeline = _base_.train_pipeline
train_pipeline.insert(1, dict(type="LoadCaptions", ann_file=captions))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    global_head=dict(
        type="GlobalHead",
        projection=dict(
            type="GlobalProjection",
            in_channels=_base_.channels,
            embed_dims=_base_.embed_dims,
            widen_factor=_base_.widen_factor,
            norm=True,
            pooling="attention",
        ),
        distances=dict(cosine=dict(type="CosineDistance", loss_weight=0.5)),
        contrast=dict(type="InfoNCE", loss_weight=0.5),
        sources=("truth", "own"),
        target="regions",
    ),
)
