"""The whole system on OV-LVIS: nothing is learnt of crops.

python tools/train.py configs/kdeov/parts/ovlvis_no_regions.py
"""

_base_ = "../kdeov_n_ovlvis.py"
model = dict(distill=None)
