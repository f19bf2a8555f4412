"""Boxes of one's own, and what a student already finds beside them, as one file."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ..vocabulary import clean_name


def with_found(
    own: Mapping[str, Any],
    found: Mapping[str, Any],
    threshold: float = 0.3,
    iou: float = 0.5,
) -> tuple[dict[str, Any], int]:
    """Add a student's boxes to annotations, as labels of the words to keep.

    Args:
        own: COCO-format annotations. Their boxes stay, and cover what the student finds
            at the same place.
        found: ``detections.json`` of ``tools/detect.py`` in the same images, by their
            file names. Names that differ in case or underscores are one word.
        threshold: boxes of lower scores are left out.
        iou: so are those that overlap an own box more.

    Returns:
        Annotations of the own categories and, after them, of the others asked for;
        the number of boxes that were added.

    Raises:
        ValueError: an image of ``own`` was not looked at.
    """
    looked = {image["file_name"]: image["id"] for image in found["images"]}
    missing = [i["file_name"] for i in own["images"] if i["file_name"] not in looked]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(own['images'])} images are not in the detections, "
            f"e.g. {missing[0]}: run tools/detect.py on their folder."
        )
    # a number for each word: that of the own category of this name, or a new one
    ids = {_word(category): category["id"] for category in own["categories"]}
    categories = [dict(category) for category in own["categories"]]
    for category in found["categories"]:
        if _word(category) not in ids:
            ids[_word(category)] = max(ids.values()) + 1
            categories.append(dict(id=ids[_word(category)], name=category["name"]))
    names = {category["id"]: _word(category) for category in found["categories"]}
    boxes = [dict(box) for box in own["annotations"]]
    last = max((box["id"] for box in boxes), default=0)
    for image, box in _uncovered(own, found, looked, threshold, iou):
        last += 1
        sides = box["bbox"]
        of = dict(image_id=image, category_id=ids[names[box["category_id"]]])
        boxes.append(
            dict(id=last, **of, bbox=sides, area=sides[2] * sides[3], iscrowd=0)
        )
    content = dict(own, annotations=boxes, categories=categories)
    return content, len(boxes) - len(own["annotations"])


def _uncovered(
    own: Mapping[str, Any],
    found: Mapping[str, Any],
    looked: Mapping[str, int],
    threshold: float,
    iou: float,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Found boxes that no own box covers, with their image's number in ``own``."""
    ours, theirs = defaultdict(list), defaultdict(list)
    for box in own["annotations"]:
        ours[box["image_id"]].append(box)
    for box in found["annotations"]:
        if box["score"] >= threshold:
            theirs[box["image_id"]].append(box)
    for image in own["images"]:
        new, covered = theirs[looked[image["file_name"]]], ours[image["id"]]
        # (n, G) overlaps
        overlap = box_iou(_corners(new), _corners(covered))
        for box, free in zip(new, (overlap <= iou).all(1).tolist()):
            if free:
                yield image["id"], box


def _word(category: Mapping[str, Any]) -> str:
    """What a CLIP reads of a category's name, or nearly so."""
    return clean_name(category["name"]).casefold()


def _corners(boxes: list[dict[str, Any]]) -> Tensor:
    """COCO's records -> (n, 4) xyxy."""
    sides = torch.tensor([box["bbox"] for box in boxes]).reshape(-1, 4)
    return box_convert(sides.float(), "xywh", "xyxy")
