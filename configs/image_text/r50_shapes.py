"""ResNet-50 from random weights on the built-in world's scenes and captions.

python tools/train.py configs/image_text/r50_shapes.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/image_text_r50.py",
    "../_base_/datasets/shapes_captions.py",
    "../_base_/schedules/adamw.py",
]
model = dict(
    text_encoder=dict(model="shapes", pretrained=None),
    teacher=dict(model="shapes", pretrained=None),
    global_head=dict(projection=dict(embed_dims=128)),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
