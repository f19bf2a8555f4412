"""Rows of very many images: columns, what finds them, COCO's JSON of them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..files import whole_file
from ..inference.api import KDEOV
from ..inference.images import in_batches
from ..inference.inferencer import KDEOVInferencer
from ..inference.results import Result, coco_record, mask_file, write_coco
from ..inference.sources import ImageSource
from ..vocabulary import Vocabulary
from .search import Row

try:
    import pyarrow
    from pyarrow import parquet
except ImportError as error:
    raise ImportError("several workers need pip install 'kdeov_mm[scale]'") from error

THREADS = 4  # of a worker, that read images
ROWS = 64  # that are kept as Python's objects
Find: TypeAlias = Callable[[Sequence[ImageSource]], Iterator[Row]]

BOX = dict(category_id="int32", name="string", area="double", score="double")
COLUMNS = dict(path="string", size="int64", mtime="int64", file_name="string")
COLUMNS |= dict(width="int32", height="int32", error="string")
BOX_TYPE = pyarrow.struct(
    [("bbox", pyarrow.list_(pyarrow.float64())), *BOX.items()]  # xywh, in pixels
)
BOXES = pyarrow.schema([*COLUMNS.items(), ("boxes", pyarrow.list_(BOX_TYPE))])
AREA = pyarrow.struct([("category_id", "int32"), ("name", "string"), ("area", "int64")])
MASKS = pyarrow.schema(  # a PNG, and the pixels of each word
    [*COLUMNS.items(), ("mask", "binary"), ("areas", pyarrow.list_(AREA))]
)


def find_boxes(make: Callable[[], KDEOVInferencer], options: dict[str, Any]) -> Find:
    """What finds rows of :data:`BOXES`.

    Args:
        make: gives the inferencer.
        options: of :meth:`KDEOVInferencer.stream`.
    """
    inferencer = make()
    names = inferencer.names()

    def find(sources: Sequence[ImageSource]) -> Iterator[Row]:
        for result in inferencer.stream(sources, threads=THREADS, **options):
            yield _row(result, names)

    return find


def find_masks(
    make: Callable[[], KDEOV], vocabulary: Vocabulary, options: dict[str, Any]
) -> Find:
    """What finds rows of :data:`MASKS`.

    Args:
        make: gives a model that segments.
        vocabulary: the words.
        options: of :meth:`KDEOV.segment`.
    """
    model, names = make(), [own[0] for own in vocabulary.words]
    model.check_segments()

    def read(source: ImageSource) -> np.ndarray | str:
        try:
            ((_, image),) = source.images()
            return image
        except OSError as error:
            return as_text(str(error))

    def find(sources: Sequence[ImageSource]) -> Iterator[Row]:
        with ThreadPoolExecutor(THREADS) as pool:
            for batch in in_batches(sources, model.batch_size):
                images = [*pool.map(read, batch)]
                good = [image for image in images if isinstance(image, np.ndarray)]
                found = iter(model.segment(good, vocabulary, **options) if good else ())
                for source, image in zip(batch, images):
                    name = dict(file_name=as_text(source.name))
                    if isinstance(image, str):
                        yield dict(name, error=image)
                    else:
                        yield name | _mask(next(found)["labels"].cpu().numpy(), names)

    return find


def _mask(labels: np.ndarray, names: Sequence[str]) -> Row:
    """Labels (H, W), -1 for none, as columns."""
    height, width = labels.shape
    numbers, counts = np.unique(labels[labels >= 0], return_counts=True)
    areas = [
        dict(category_id=number + 1, name=names[number], area=area)
        for number, area in zip(numbers.tolist(), counts.tolist())
    ]
    return dict(width=width, height=height, mask=mask_file(labels), areas=areas)


def as_text(name: str) -> str:
    """A name as a column can have it: it need not be UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _row(result: Result, names: Sequence[str]) -> dict[str, Any]:
    """What was found, or why nothing was."""
    name = as_text(result.name)
    if result.sample is None:
        return dict(file_name=name, error=as_text(str(result.error)))
    record = coco_record(result)
    boxes = [dict(b, name=names[b["category_id"] - 1]) for b in record["annotations"]]
    return dict(record["image"], file_name=name, boxes=boxes)


def write_detections(folder: Path, target: Path, names: Sequence[str]) -> list[int]:
    """COCO's JSON of the rows in a folder's files, a batch at a time.

    Returns:
        Numbers of images that could be read, and of boxes.
    """

    def records() -> Iterator[dict[str, Any]]:
        columns = ["file_name", "width", "height", "error", "boxes"]
        for file in sorted(folder.glob("*.parquet")):
            for batch in parquet.ParquetFile(file).iter_batches(ROWS, columns=columns):
                for row in batch.to_pylist():
                    boxes = row.pop("boxes")
                    if row.pop("error") is None:
                        yield dict(image=row, annotations=[*map(_annotation, boxes)])

    with whole_file(target) as file:
        return write_coco(file, records, names)


def _annotation(box: dict[str, Any]) -> dict[str, Any]:
    """As :func:`coco_record` gives it."""
    keys = ("category_id", "bbox", "area", "score")
    return dict({k: box[k] for k in keys}, iscrowd=0, segmentation=[])
