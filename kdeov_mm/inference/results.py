"""What was found: as mm's samples, COCO's JSON, supervision's Detections, drawings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.structures import DetDataSample

from ..files import write_whole
from .sources import Source


@dataclass
class Result:
    """What was found in a picture, or in a frame of a video.

    Attributes:
        source: where it is from.
        frame: its number in the video, from 0; None of a picture.
        picture: (H, W, 3) uint8 BGR; None where it could not be read.
        sample: mmdet's sample: ``pred_instances`` with ``bboxes`` (n, 4), xyxy in
            pixels of the picture, ``scores``, ``labels`` and ``label_names``, best
            first; None where the picture could not be read.
        error: why it could not.
    """

    source: Source
    frame: int | None = None
    picture: np.ndarray | None = None
    sample: DetDataSample | None = None
    error: str | None = None

    @property
    def path(self) -> Path | None:
        """The file; None of a picture in memory and of a camera."""
        return self.source.path

    @property
    def name(self) -> str:
        """The source's name; of a frame with its number, ``demo_000012.jpg``."""
        if self.frame is None:
            return self.source.name
        stem = Path(self.source.name).with_suffix("").as_posix()
        return f"{stem}_{self.frame:06d}.jpg"


def coco_record(result: Result) -> dict[str, Any]:
    """A result as ``image`` and ``annotations`` of COCO, both still without ids.

    Raises:
        ValueError: the picture could not be read.
    """
    if result.sample is None:
        raise ValueError(f"{result.name} has no boxes: {result.error}")
    height, width = result.sample.ori_shape
    image = dict(file_name=result.name, width=width, height=height)
    if result.frame is not None:
        image.update(video=result.source.name, frame=result.frame)
    found = result.sample.pred_instances.cpu()
    annotations = []
    for (x1, y1, x2, y2), score, label in zip(
        found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()
    ):
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
    """Records of :func:`coco_record`, and the K names, as a file of COCO."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        images.append(dict(id=len(images) + 1, **record["image"]))
        for box in record["annotations"]:
            ids = dict(id=len(annotations) + 1, image_id=len(images))
            annotations.append(ids | box)
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    return dict(
        info=dict(description="found by kdeov_mm"),
        images=images,
        annotations=annotations,
        categories=categories,
    )


def to_coco(results: Iterable[Result], names: Sequence[str]) -> dict[str, Any]:
    """Results as a file of COCO: what ``pycocotools.coco.COCO`` loads.

    Boxes are xywh in pixels, each with its ``score``; a category's id is its place
    among the names, from 1. Pictures that could not be read are left out.

    Args:
        results: of :meth:`KDEOVInferencer.stream`.
        names: the K names, that labels index: :meth:`KDEOVInferencer.names`.
    """
    good = (result for result in results if result.sample is not None)
    return join_coco(map(coco_record, good), names)


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


class Drawings:
    """A folder of drawings: a picture by its name, a video's frames as one ``.mp4``.

    A file is there when all of it is. Use it in a ``with``. Videos have even sides:
    of odd ones the codec drops the last row or column.

    Args:
        folder: made as needed.
        every: of a video, one frame in so many is drawn; it plays as long.
    """

    def __init__(self, folder: Path, every: int = 1) -> None:
        self.folder = folder
        self.every = every
        self._video: tuple[Path, Any] | None = None

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.finish()
        elif self._video:  # not the whole video
            path, writer = self._video
            writer.release()
            _scratch(path).unlink(missing_ok=True)

    def place(self, source: Source) -> Path:
        """Where a source's drawing is written."""
        path = self.folder / source.name
        pictures = [".png", ".jpg", ".jpeg", ".bmp", ".webp"]
        kinds = [".mp4"] if source.is_video else pictures
        if path.suffix.lower() in kinds:
            return path
        return path.with_name(path.name + kinds[0])

    def add(self, result: Result, drawing: np.ndarray) -> None:
        """Write a result's drawing (H, W, 3) uint8 RGB.

        Raises:
            OSError: it cannot be written.
        """
        path, pixels = self.place(result.source), drawing[..., ::-1]
        if self._video and self._video[0] != path:
            self.finish()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not result.source.is_video:
            write_whole(path, cv2.imencode(path.suffix, pixels)[1].tobytes())
            return
        if not self._video:
            self._video = path, self._writer(path, result.source, pixels.shape)
        self._video[1].write(np.ascontiguousarray(pixels))

    def _writer(self, path: Path, source: Source, shape: tuple[int, ...]) -> Any:
        fps = (source.video_info()[0] or 25) / self.every
        code = cv2.VideoWriter.fourcc(*"mp4v")
        size = (shape[1], shape[0])
        writer = cv2.VideoWriter(str(_scratch(path)), code, fps, size)
        if not writer.isOpened():
            raise OSError(f"cannot write the video {path}, {size} px, {fps} fps")
        return writer

    def finish(self) -> None:
        """The video that was begun, if any, has all of its frames."""
        if self._video:
            path, writer = self._video
            writer.release()
            _scratch(path).replace(path)
            self._video = None


def _scratch(path: Path) -> Path:
    return path.with_suffix(".part.mp4")
