"""`head_light` with a light neck: separable convolutions in both.

python tools/train.py configs/kdeov/ablations/neck_light.py
"""

_base_ = "./head_light.py"
model = dict(neck=dict(type="LightPAFPN"))
