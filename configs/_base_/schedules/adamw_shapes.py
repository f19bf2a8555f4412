"""AdamW for detectors of the built-in world: 800 iterations, at twice the rate."""

_base_ = "./adamw.py"
optim_wrapper = dict(optimizer=dict(lr=0.004))
