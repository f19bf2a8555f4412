"""Crops at the ground truth alone: nothing that is not labelled.

python tools/train.py configs/kdeov/ablations/region_truth.py
"""

_base_ = "./default.py"
model = dict(distill=dict(region=dict(sources=("truth",))))
