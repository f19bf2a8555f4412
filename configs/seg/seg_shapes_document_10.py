"""`seg_shapes_document` with masks of 10 per cent of the images alone.

python tools/train.py configs/seg/seg_shapes_document_10.py
"""

_base_ = "./seg_shapes_document.py"
train_dataloader = dict(dataset=dict(labelled=0.1))
