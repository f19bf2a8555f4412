"""The document's system on COCO-Stuff 164k.

python tools/train.py configs/seg/seg_coco_stuff.py
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/seg_document.py",
    "../_base_/datasets/coco_stuff.py",
    "../_base_/schedules/adamw_40k.py",
]
model = dict(seg_head=dict(classes="COCOStuffDataset", background=False))
visualizer = dict(type="SegVisualizer")
