"""The whole system on shapes: no captions are learnt.

python tools/train.py configs/kdeov/parts/shapes_no_infonce.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(global_head=dict(contrast=None))
