"""The whole system on OV-COCO: FiLM with a shift for each word.

python tools/train.py configs/kdeov/parts/ovcoco_film_shift.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(bbox_head=dict(head_module=dict(adapter=dict(shift=True))))
