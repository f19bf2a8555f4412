"""Objects below 16 pixels, of which the teacher sees little, are no regions.

python tools/train.py configs/kdeov/hard/min_side.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(distill=dict(region=dict(min_side=16)))
