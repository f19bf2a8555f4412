"""The same with a shift, which is a prior of each word by itself.

python tools/train.py configs/kdeov/ablations/fusion_class_film_shift.py
"""

_base_ = "./fusion_class_film.py"
model = dict(bbox_head=dict(head_module=dict(adapter=dict(shift=True))))
