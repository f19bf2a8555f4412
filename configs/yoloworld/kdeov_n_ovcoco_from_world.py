"""A small student of a large YOLO-World, CLIP the second teacher. Not measured.

The large one's boxes of 1,203 words in COCO's pictures are labels beside those of the
base classes (`tools/keep_words.py`; README.md has the commands); CLIP says of crops
what a word does not. Its AP of novel classes is no open-vocabulary figure: the large
one had boxes of them, and the leak report says so.
    python tools/train.py configs/yoloworld/kdeov_n_ovcoco_from_world.py
"""

_base_ = "../kdeov/kdeov_n_ovcoco.py"
labels = "annotations/world_labels.json"
train_dataloader = dict(
    dataset=dict(ann_file=labels, vocabulary=_base_.data_root + labels)
)
pretraining = ["objects365v1"]  # of whom the labels come
