"""Regions count as much as the teacher agrees with itself at 1x and 1.5x.

python tools/train.py configs/kdeov/hard/trust_scales.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(distill=dict(region=dict(trust="scales")))
