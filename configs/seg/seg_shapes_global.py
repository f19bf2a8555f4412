"""Global InfoNCE alone, of the document's two losses.

python tools/train.py configs/seg/seg_shapes_global.py
"""

_base_ = "./seg_shapes_document.py"
model = dict(distill=dict(local=None))
