"""The whole system on OV-COCO: no FiLM.

python tools/train.py configs/kdeov/parts/ovcoco_no_film.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(bbox_head=dict(head_module=dict(adapter=None)))
