"""The whole system on shapes: FiLM with a shift for each word.

python tools/train.py configs/kdeov/parts/shapes_film_shift.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(bbox_head=dict(head_module=dict(adapter=dict(shift=True))))
