"""ResNet-50 from random weights on the built-in world's scenes and captions.

python tools/train.py configs/image_text/r50_shapes.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/image_text_r50.py",
    "../_base_/datasets/shapes_captions.py",
    "../_base_/schedules/adamw_1200.py",
]
# scenes of small objects: embeddings of locations, at three levels
projection = dict(
    in_channels=[512, 1024, 2048],
    hidden_dims=512,
    embed_dims=128,
    norm=True,
    pooling="attention",
)
model = dict(
    backbone=dict(out_indices=(1, 2, 3)),
    text_encoder=dict(model="shapes", pretrained=None),
    teacher=dict(model="shapes", pretrained=None),
    global_head=dict(projection=projection),
)
# a step learns all three captions of its scenes
train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(type="LoadCaptions", number=3)
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.001))
