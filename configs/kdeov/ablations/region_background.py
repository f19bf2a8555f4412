"""Objects without a label are background for the class loss, as usual.

python tools/train.py configs/kdeov/ablations/region_background.py
"""

_base_ = "./default.py"
model = dict(distill=dict(region=dict(background=True)))
