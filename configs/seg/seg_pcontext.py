"""The document's system on Pascal Context, 59 classes.

python tools/train.py configs/seg/seg_pcontext.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_document.py",
    "../_base_/datasets/pcontext.py",
    "../_base_/schedules/adamw_40k.py",
]
model = dict(seg_head=dict(classes="PascalContextDataset", background=False))
visualizer = dict(type="SegVisualizer")
