"""Local attention alone, of the document's two losses.

python tools/train.py configs/seg/seg_shapes_local.py
"""

_base_ = "./seg_shapes_document.py"
model = dict(distill=dict(whole=None))
