"""The whole system on shapes: no FiLM.

python tools/train.py configs/kdeov/parts/shapes_no_film.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(bbox_head=dict(head_module=dict(adapter=None)))
