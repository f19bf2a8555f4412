"""The whole system on shapes: nothing is learnt of crops.

python tools/train.py configs/kdeov/parts/shapes_no_regions.py
"""

_base_ = "../kdeov_n_shapes_whole.py"
model = dict(distill=None)
