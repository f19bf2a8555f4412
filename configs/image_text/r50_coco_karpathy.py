"""The same without Karpathy's test images, on which it is tested: what papers report.

Needs val2014 and ``captions_val2014.json`` for the test, and ``dataset_coco.json`` (or
the 5,000 ids, one per line) in ``data/coco/annotations``. Not measured.

    python tools/train.py configs/image_text/r50_coco_karpathy.py
"""

_base_ = "./r50_coco.py"
ids_file = "data/coco/annotations/dataset_coco.json"
train_dataloader = dict(dataset=dict(ids_file=ids_file, exclude=True))
val_dataloader = dict(
    dataset=dict(
        ids_file=ids_file,
        ann_file="data/coco/annotations/captions_val2014.json",
        data_prefix=dict(img="data/coco/val2014/"),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(protocol="COCO captions, Karpathy's 5k test images")
test_evaluator = val_evaluator
