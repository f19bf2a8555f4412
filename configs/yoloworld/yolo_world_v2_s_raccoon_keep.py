"""YOLO-World v2 S fine-tuned on boxes of one's own, keeping its vocabulary.

As ``yolo_world_v2_s_raccoon``; CLIP sees what nobody labelled in the photos. Then the
mean of the weights before and after (tools/interpolate.py). Not measured here.
    python tools/train.py configs/yoloworld/yolo_world_v2_s_raccoon_keep.py
"""

_base_ = "./yolo_world_v2_s_raccoon.py"
cosine = dict(type="CosineDistance", loss_weight=0.5)
relation = dict(type="RelationalDistance", loss_weight=0.75)
model = dict(
    teacher=dict(
        type="CLIPImageTeacher", model="ViT-B-32-quickgelu", pretrained="openai"
    ),
    distill=dict(
        region=dict(
            type="RegionDistillation",
            sources=("own",),
            warmup=0.0,
            distances=dict(cosine=cosine, relation=relation),
        )
    ),
)
