"""The whole system on shapes: of whole images only captions are learnt.

python tools/train.py configs/kdeov/parts/shapes_no_cosine.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(global_head=dict(distances=None))
