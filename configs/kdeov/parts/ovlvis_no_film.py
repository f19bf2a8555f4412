"""The whole system on OV-LVIS: no FiLM.

python tools/train.py configs/kdeov/parts/ovlvis_no_film.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(bbox_head=dict(head_module=dict(adapter=None)))
