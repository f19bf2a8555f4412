"""Regions count as much as the teacher is sure of its word.

python tools/train.py configs/kdeov/hard/trust_words.py
"""

_base_ = "../kdeov_n_shapes_hard.py"
model = dict(distill=dict(region=dict(trust="words")))
