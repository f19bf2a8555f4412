"""The whole system on OV-LVIS: FiLM with a shift for each word.

python tools/train.py configs/kdeov/parts/ovlvis_film_shift.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(bbox_head=dict(head_module=dict(adapter=dict(shift=True))))
