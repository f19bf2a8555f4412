"""The student with OpenAI's CLIP ViT-B/32 for words and crops, at 640 pixels.

open_clip downloads its weights once (600 MB), or ``pretrained`` names a local file.
The student begins from nothing: a YOLOv8 trained on COCO or Objects365 has seen boxes
of the novel classes.
"""

_base_ = "./kdeov_yolov8_n.py"
clip = dict(model="ViT-B-32-quickgelu", pretrained="openai")
model = dict(
    bbox_head=dict(head_module=dict(embed_dims=512, prior_size=640)),
    text_encoder=clip,
    teacher=clip,
    test_cfg=dict(max_per_img=300),
)
