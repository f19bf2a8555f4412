"""The document's system on Pascal VOC 2012: closed head, global and local losses.

python tools/train.py configs/seg/seg_voc.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_document.py",
    "../_base_/datasets/voc_seg.py",
    "../_base_/schedules/adamw_40k.py",
]
model = dict(seg_head=dict(classes="VOCSegDataset"))
visualizer = dict(type="SegVisualizer")
