"""What was found: as mm's samples, COCO's JSON, supervision's Detections."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from mmdet.structures import DetDataSample

from ..vocabulary import Vocabulary
from .sources import ImageSource


@dataclass
class Result:
    """What was found in an image, or in a frame of a video.

    Attributes:
        source: where it is from.
        frame: its number in the video, from 0; None of an image.
        image: (H, W, 3) uint8 RGB; None where it could not be read.
        sample: mmdet's sample: ``pred_instances`` with ``bboxes`` (n, 4), xyxy in
            pixels of the image, ``scores``, ``labels`` and ``label_names``, best first;
            None where the image could not be read.
        error: why it could not.
    """

    source: ImageSource
    frame: int | None = None
    image: np.ndarray | None = None
    sample: DetDataSample | None = None
    error: str | None = None

    @property
    def path(self) -> Path | None:
        """The file; None of an image in memory and of a camera."""
        return self.source.path

    @property
    def name(self) -> str:
        """The source's name; of a frame with its number, ``demo_000012.jpg``."""
        if self.frame is None:
            return self.source.name
        stem = Path(self.source.name).with_suffix("").as_posix()
        return f"{stem}_{self.frame:06d}.jpg"


def depends_on(
    checkpoint: Path, config: Path | None, vocabulary: Vocabulary
) -> dict[str, Any]:
    """What results depend on, besides the inputs, as JSON.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint} does not exist")
    # words alone do not tell: a file may bring vectors of its own
    vectors = (
        _sha256(vocabulary.matrix().numpy().tobytes()) if vocabulary.vectors else None
    )
    return {
        "checkpoint": _sha256(checkpoint.read_bytes()),
        "config": config and _sha256(config.read_bytes()),
        "words": [list(own) for own in vocabulary.words],
        "vectors of the words": vectors,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def mask_file(labels: np.ndarray) -> bytes:
    """Labels (H, W), -1 for none, as a PNG of 16 bit of label + 1."""
    return cv2.imencode(".png", (labels + 1).astype(np.uint16))[1].tobytes()


def coco_record(result: Result) -> dict[str, Any]:
    """A result as ``image`` and ``annotations`` of COCO, both still without ids.

    Raises:
        ValueError: the image could not be read.
    """
    if result.sample is None:
        raise ValueError(f"{result.name} has no boxes: {result.error}")
    height, width = result.sample.ori_shape
    image = dict(file_name=result.name, width=width, height=height)
    if result.frame is not None:
        image.update(video=result.source.name, frame=result.frame)
    # xyxy -> xywh; labels count from 0, COCO's categories from 1
    found = result.sample.pred_instances.cpu()
    annotations = []
    for (x1, y1, x2, y2), score, label in zip(
        found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()
    ):
        # thousandths of a pixel: more digits would make the file larger for nothing
        box = [round(n, 3) for n in (x1, y1, x2 - x1, y2 - y1)]
        annotations.append(
            dict(
                category_id=label + 1,
                bbox=box,
                area=round(box[2] * box[3], 3),
                score=round(score, 6),
                iscrowd=0,
                segmentation=[],
            )
        )
    return dict(image=image, annotations=annotations)


def join_coco(
    records: Iterable[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """Records of :func:`coco_record`, and the K names, as a file of COCO.

    >>> box = dict(category_id=1, bbox=[0, 0, 4, 5], score=0.9)
    >>> record = dict(image=dict(file_name="a.jpg"), annotations=[box])
    >>> content = join_coco([record, record], ["cat"])
    >>> [image["id"] for image in content["images"]]
    [1, 2]
    >>> [box["image_id"] for box in content["annotations"]]
    [1, 2]
    """
    known = [*records]
    return dict(
        info=dict(description="found by kdeov_mm"),
        images=[*_images(known)],
        annotations=[*_annotations(known)],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
    )


def _images(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """COCO's images; ids count from 1 over all records."""
    for i, record in enumerate(records, 1):
        yield dict(id=i, **record["image"])


def _annotations(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """COCO's annotations; ids count from 1 over all records."""
    numbers = count(1)
    for i, record in enumerate(records, 1):
        for box in record["annotations"]:
            yield dict(id=next(numbers), image_id=i) | box


def write_coco(
    file: IO[bytes],
    records: Callable[[], Iterable[dict[str, Any]]],
    names: Sequence[str],
) -> list[int]:
    """Write what :func:`join_coco` gives as JSON, a record at a time.

    Args:
        file: to write to.
        records: called twice, for images and for boxes; the same each time.
        names: the K names.

    Returns:
        Numbers of images and of boxes.
    """
    streams = dict(images=_images, annotations=_annotations)
    written = []
    for place, (key, value) in enumerate(join_coco([], names).items()):
        file.write(f"{', ' if place else '{'}{json.dumps(key)}: ".encode())
        if key not in streams:
            file.write(json.dumps(value).encode())
            continue
        number = 0
        for number, item in enumerate(streams[key](records()), 1):
            file.write((("[" if number == 1 else ", ") + json.dumps(item)).encode())
        file.write(b"]" if number else b"[]")
        written.append(number)
    file.write(b"}")
    return written


def to_coco(results: Iterable[Result], names: Sequence[str]) -> dict[str, Any]:
    """Results as a file of COCO: what ``pycocotools.coco.COCO`` loads.

    Boxes are xywh in pixels, each with its ``score``; a category's id is its place
    among the names, from 1. Images that could not be read are left out.

    Args:
        results: of :meth:`KDEOVInferencer.stream`.
        names: the K names, that labels index: :meth:`KDEOVInferencer.names`.
    """
    readable = (result for result in results if result.sample is not None)
    return join_coco(map(coco_record, readable), names)


def to_supervision(sample: DetDataSample) -> Any:
    """A sample as ``supervision.Detections``, with ``data['class_name']``.

    Raises:
        ImportError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            "supervision.Detections need supervision: pip install supervision"
        ) from error
    found = sample.pred_instances.cpu()
    return supervision.Detections(
        xyxy=found.bboxes.numpy(),
        confidence=found.scores.numpy(),
        class_id=found.labels.numpy(),
        data=dict(class_name=np.array(found.label_names, dtype=str)),
    )
