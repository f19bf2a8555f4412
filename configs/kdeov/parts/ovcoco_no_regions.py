"""The whole system on OV-COCO: nothing is learnt of crops.

python tools/train.py configs/kdeov/parts/ovcoco_no_regions.py
"""

_base_ = "../kdeov_n_ovcoco.py"
model = dict(distill=None)
