"""The hard world's masks: 352 base classes labelled, 494 words at test time.

Written by ``python tools/make_shapes.py --world hard``. Images of 320 px.
"""

_base_ = "./shapes_seg.py"
image_size = 320
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = (image_size, image_size)
dataset = dict(type="ShapesHardSegDataset", data_root="data/shapes_hard/")
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline, **dataset))
# logits of 494 words for each pixel: 200 of the 1,000 images are asked
val_dataloader = dict(
    batch_size=8, dataset=dict(pipeline=test_pipeline, indices=200, **dataset)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    protocol="shapes-hard masks, generalised: all 494 words and background, 200 images"
)
test_evaluator = val_evaluator
