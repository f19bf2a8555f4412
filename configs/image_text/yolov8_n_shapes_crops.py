"""Objects one by one: the teacher's embedding of base crops, by cosine and relations.

    python tools/train.py configs/image_text/yolov8_n_shapes_crops.py

Also how the joint detector's global path is tested, zero-shot among 360 words:
    python tools/test.py configs/image_text/yolov8_n_shapes_crops.py \
        work_dirs/kdeov_n_shapes_joint/iter_800.pth
"""

_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/models/image_text_yolov8_n.py",
    "../_base_/datasets/shapes_crops.py",
    "../_base_/schedules/adamw.py",
]
model = dict(
    global_head=dict(
        distances=dict(
            cosine=dict(type="CosineDistance", loss_weight=0.5),
            relation=dict(type="RelationalDistance", loss_weight=0.75),
        )
    )
)
