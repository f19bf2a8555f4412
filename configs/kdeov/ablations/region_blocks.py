"""Crops at the ground truth and at the tiles of 2 x 2, 3 x 3 and 4 x 4 grids.

python tools/train.py configs/kdeov/ablations/region_blocks.py
"""

_base_ = "./default.py"
model = dict(distill=dict(region=dict(sources=("truth", "blocks"))))
