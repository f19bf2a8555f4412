"""The demo's student on the table's schedule; the parent of all rows.

Half the demo's schedule, 800 iterations: about four minutes on 2 cores, so that every
row can be run with several seeds. `tools/studies/run_ablations.py` runs them all.

    python tools/train.py configs/kdeov/ablations/default.py
"""

_base_ = [
    "../../_base_/default_runtime.py",
    "../../_base_/models/kdeov_yolov8_n.py",
    "../../_base_/datasets/shapes.py",
    "../../_base_/schedules/adamw_shapes.py",
]
