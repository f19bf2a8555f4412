"""The same as usual, with one's own boxes alone and no teacher: it forgets.

python tools/train.py configs/kdeov/kdeov_n_shapes_finetune_plain.py
"""

_base_ = "./kdeov_n_shapes_finetune.py"
train_dataloader = dict(
    dataset=dict(ann_file=_base_.own, vocabulary=_base_.data_root + _base_.own)
)
model = dict(teacher=None, distill=None)
