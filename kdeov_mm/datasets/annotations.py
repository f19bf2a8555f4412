"""One check of annotation files: for training, evaluation, the doctor and splits.

What is wrong is refused, with file, field, count and an example. What is missing and
follows from the rest is filled in. What is no object is dropped, and what is plainly
meant is put right, the same way for training and evaluation; notes count it.
"""

import gc
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from PIL import Image

Record = dict[str, Any]
Size = tuple[int, int]  # width, height
NUMBERS = {int, float}
_INF = float("inf")
LARGEST = 1e6  # pixels: beyond any image
MAX_BEYOND = 0.1  # of the boxes: more of them beyond their images are no accident
MAX_COPIES = 0.01  # of the annotations: more of them were joined twice
_ORIENTATION = 0x0112  # EXIF's tag; 5 to 8 are quarter turns
# what is wrong with images, and what to do
_IMAGE_FAULTS = dict(
    missing="are not there, the first {}: are the names those of the files?",
    damaged="cannot be read; the first: {}. Replace them, or remove their records.",
    size="are loaded with another width and height than the file says: {}. Boxes would "
    "lie beside their objects. Where the sides are exchanged, the camera's turn (EXIF) "
    "was not followed when they were labelled: write the images turned, and label or "
    "convert them again.",
)


@contextmanager
def collected_later() -> Iterator[None]:
    """Without Python's garbage collection, which walks all records again and again.

    Records of a file of train2017's size are read in half the time, or less.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _boxed(record: Record) -> Record:
    """A record without its outline, where it has a box."""
    if "bbox" in record:
        record.pop("segmentation", None)
    return record


class AnnotationError(ValueError):
    """An annotation file that says what cannot be, or lacks what has to be there."""


class Note(NamedTuple):
    """What was put right or dropped in ``boxes`` of ``total`` annotations."""

    boxes: int
    total: int
    what: str

    @property
    def text(self) -> str:
        """A sentence for the log."""
        return f"{self.boxes:,} of {self.total:,} {self.what}."

    @property
    def many(self) -> bool:
        """More than a few: a habit of the tool that wrote the file."""
        return self.boxes > 0.01 * self.total


class Looked(NamedTuple):
    """How many images of an annotation file were opened, and how many are missing."""

    opened: int
    total: int
    missing: int


class AnnotationFile:
    """A COCO- or LVIS-format file whose records were checked.

    Args:
        data: the file's bytes, JSON in any of its encodings; or its content.
        path: its name, for messages.
        outlines: False: those of annotations with a box are not kept, most of a file.

    Attributes:
        content: with ``images``, ``annotations`` and ``categories``. After
            :meth:`check_boxes` every box is of positive size and on its image, and
            every annotation has ``id``, ``area`` and ``iscrowd``.
        labelled: whether the file has annotations at all; a test server's has none.
        notes: what was put right or dropped, with counts, in words.
        boxes: annotations in the file, before any was dropped.

    Raises:
        AnnotationError: no JSON, keys that are missing, ids that are no whole numbers,
            there twice or of nothing, images without a file, sizes that are none,
            nameless categories.

    Example:
        >>> cat = dict(id=1, name="cat")
        >>> image = dict(id=7, file_name="a.jpg", width=100, height=80)
        >>> box = dict(id=1, image_id=7, category_id=1, bbox=[50, 40, -20, 30])
        >>> content = dict(images=[image], annotations=[box], categories=[cat])
        >>> file = AnnotationFile(content, "val.json")
        >>> file.check_boxes()
        >>> file.content["annotations"][0]["bbox"]
        [30.0, 40.0, 20.0, 30.0]
        >>> file.notes[0].text[:45]
        '1 of 1 boxes have a negative width or height,'
    """

    def __init__(
        self,
        data: bytes | Mapping[str, Any],
        path: str | Path,
        outlines: bool = True,
    ) -> None:
        self.path = str(path)
        self.notes: list[Note] = []
        self._checked = False
        # read
        if isinstance(data, bytes):
            try:
                data = json.loads(data, object_hook=None if outlines else _boxed)
            except (ValueError, RecursionError) as error:
                self._refuse(
                    f"is no JSON, or ends early: {error or 'too many brackets'}"
                )
        if not isinstance(data, Mapping):
            self._refuse(
                f"holds a {type(data).__name__}; expected COCO's object of lists"
            )
        self.content: Record = dict(data)
        # the lists; a test server's file has no annotations
        images, categories = self._list("images"), self._list("categories")
        self.labelled = "annotations" in self.content
        annotations = self._list("annotations") if self.labelled else []
        self.content["annotations"] = annotations
        self.boxes = len(annotations)
        # their ids
        if annotations and not any("id" in a for a in annotations):
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
        for key, records in (
            ("images", images),
            ("categories", categories),
            ("annotations", annotations),
        ):
            self._check_ids(key, records)
        self._check_known("image_id", images)
        self._check_known("category_id", categories)
        # what the records say
        self._check_images(images)
        self._check_categories(categories)

    def _refuse(self, what: str) -> NoReturn:
        raise AnnotationError(f"{self.path}: {what}.")

    def _refuse_some(
        self, wrong: Sized, total: int, what: str, example: Any
    ) -> NoReturn:
        count = f"{len(wrong):,} of {total:,}"
        raise AnnotationError(f"{self.path}: {count} {what}; the first: {example}.")

    def _list(self, key: str) -> list[Record]:
        """A list of records, which may be changed; those of the caller are not."""
        value = self.content.get(key)
        if not isinstance(value, list) or {*map(type, value)} - {dict}:
            there = [*self.content]
            have = "is no list of objects" if key in self.content else "is missing"
            self._refuse(f"no file of boxes: its {key!r} {have}; it has {there[:8]}")
        return value

    def _check_ids(self, key: str, records: Sequence[Record]) -> None:
        """Whole numbers, each there once."""
        ids = [record.get("id") for record in records]
        if {*map(type, ids)} - {int}:
            wrong = [r for r in records if type(r.get("id")) is not int]
            what = f"{key} have no whole number as their id (text is none)"
            self._refuse_some(wrong, len(ids), what, _short(wrong[0]))
        if len({*ids}) < len(ids):
            twice = [i for i, number in Counter(ids).items() if number > 1]
            concerned = [r for r in records if r["id"] in {*twice}]
            self._refuse(
                f"{len(twice):,} {key[:-1]} ids are there twice, {len(concerned):,} "
                f"{key} are concerned, the first {twice[0]}. Which boxes are whose "
                "cannot be told: were files joined? Give each its own number"
            )

    def _check_known(self, key: str, known: Sequence[Record]) -> None:
        """Annotations are of images and categories that are there."""
        ids = {record["id"] for record in known}
        annotations = self.content["annotations"]
        try:
            unknown = {a.get(key) for a in annotations} - ids
        except TypeError:  # a list as id
            unknown = {None}
        if unknown:
            wrong = [
                a
                for a in annotations
                if isinstance(a.get(key), (list, dict)) or a.get(key) not in ids
            ]
            listed = "images" if key == "image_id" else "categories"
            what = f"annotations have a {key} that is not among the {listed}"
            self._refuse_some(wrong, len(annotations), what, _short(wrong[0]))

    def _check_images(self, images: Sequence[Record]) -> None:
        """Each has a file of its own; its size is known or missing, not wrong."""
        names = [_file_of(image) for image in images]
        if nameless := [i for i, name in zip(images, names) if not name]:
            what = "images have no text as their 'file_name'"
            self._refuse_some(nameless, len(images), what, _short(nameless[0]))
        if len({*names}) < len(names):
            twice = [n for n, number in Counter(names).items() if number > 1]
            what = "images share their file with another one, whose objects would be "
            what += "taught as background"
            concerned = [n for n in names if n in {*twice}]
            self._refuse_some(concerned, len(names), what, twice[0])
        for image in images:
            if fault := image_fault(image):
                self._refuse(f"image {image['id']} has {fault}")
            # tools that do not know a size write 0, or nothing
            for side in ("width", "height"):
                image[side] = int(image.get(side) or 0) or None

    def _check_categories(self, categories: list[Record]) -> None:
        """Each has a name; of two with the same, one without any box is dropped."""
        wrong = [c for c in categories if not _is_text(c.get("name"))]
        if wrong:
            what = "categories have no text as their name"
            self._refuse_some(wrong, len(categories), what, _short(wrong[0]))
        twice = {n for n, k in Counter(c["name"] for c in categories).items() if k > 1}
        if not twice:
            return
        # labelling tools write a root of the name of its only class
        boxes = Counter(a["category_id"] for a in self.content["annotations"])
        kept = [c for c in categories if c["name"] not in twice or boxes[c["id"]]]
        names = Counter(c["name"] for c in kept)
        if unclear := [n for n in twice if names[n] > 1]:
            self._refuse(
                f"the category names {unclear[:5]} are there twice, each with boxes: "
                "join them, or rename one"
            )
        # a name without any box keeps its first category
        lacking = {n: c for c in reversed(categories) if (n := c["name"]) in twice}
        kept += [c for n, c in lacking.items() if not names[n]]
        self.content["categories"] = kept

    @property
    def unsized(self) -> list[Record]:
        """Images whose width or height the file does not say."""
        images = self.content["images"]
        return [i for i in images if i["width"] is None or i["height"] is None]

    def fill_sizes(self, size_of: Callable[[Record], Size]) -> None:
        """Fill in the sizes that are missing; ``size_of`` gives an image's."""
        for image in self.unsized:
            image["width"], image["height"] = size_of(image)

    def look_at_images(
        self, path_of: Callable[[Record], str | Path], number: int | None
    ) -> Looked:
        """Open images, and compare their sizes, as they are loaded, with the file's.

        Args:
            path_of: gives an image's path.
            number: so many, spread over all of them; None for all.

        Returns:
            What was opened. Where none of the images is there, nothing is refused:
            labels alone can be looked at.

        Raises:
            FileNotFoundError: some of the images are not there.
            AnnotationError: some cannot be read, or are of another size.
        """
        images = self.content["images"]
        total = len(images)
        count = total if number is None else min(number, total)
        faults: dict[str, list[str]] = {"missing": [], "damaged": [], "size": []}
        for image in (images[i * total // count] for i in range(count)):
            path = path_of(image)
            try:
                size = picture_size(path)
            except FileNotFoundError:
                faults["missing"].append(str(path))
            except OSError as error:
                faults["damaged"].append(str(error))
            else:
                if size != (said := (image["width"], image["height"])):
                    texts = ["{} x {}".format(*s) for s in (said, size)]
                    text = f"{path} is {texts[0]} in the file, {texts[1]} when loaded"
                    faults["size"].append(text)
        looked = Looked(count, total, len(faults["missing"]))
        if looked.missing == count:
            return looked
        # what is wrong with them
        for kind, found in faults.items():
            if found:
                text = f"{len(found):,} of the {count:,} images that were opened"
                text += f" (of {total:,})" * (count < total)
                text += f" {_IMAGE_FAULTS[kind].format(found[0])}"
                refusal = FileNotFoundError if kind == "missing" else AnnotationError
                raise refusal(f"{self.path}: {text}")
        return looked

    def check_names(self, asked: Iterable[str]) -> None:
        """No category is an asked class in another spelling.

        Raises:
            AnnotationError: one differs from an asked class by case, blanks or Unicode
                form alone: its objects would be taught as background.
        """
        names = {_plain(name): name for name in asked}
        exact = {*names.values()}
        boxes = Counter(a["category_id"] for a in self.content["annotations"])
        for category in self.content["categories"]:
            name = category["name"]
            like = names.get(_plain(name))
            if like is not None and name not in exact and boxes[category["id"]]:
                self._refuse(
                    f"{boxes[category['id']]:,} of {self.boxes:,} objects are called "
                    f"{name!r}, and {like!r} is asked, which differs by its spelling "
                    "alone: write one of them as the other"
                )

    def check_boxes(self) -> None:
        """Fill in, put right and drop, or refuse; all images need a size.

        Raises:
            AnnotationError: boxes that are no four numbers, are corners or fractions,
                or are beyond their images by more than rounding, in more than a tenth.
        """
        if self._checked or not self.content["annotations"]:
            return
        self._checked = True
        boxes = self._numbers()
        images, annotations = self.content["images"], self.content["annotations"]
        # (images, 2) -> (N, 2), the size of each box's image
        sizes = np.array([(i["width"], i["height"]) for i in images], float)
        place = {image["id"]: row for row, image in enumerate(images)}
        limits = sizes[[place[a["image_id"]] for a in annotations]]
        self._refuse_fractions(boxes, limits)
        self._fill(boxes)
        self._refuse_corners(boxes, limits)
        self._refuse_copies(boxes)
        self._correct(boxes, limits)

    def _numbers(self) -> np.ndarray:
        """The boxes (N, 4) xywh, as they stand in the file."""
        annotations = self.content["annotations"]
        # boxes that are missing are those of the outlines
        for annotation in annotations:
            if "bbox" not in annotation:
                annotation["bbox"] = _box_of_outline(annotation.get("segmentation"))
        boxes = [annotation["bbox"] for annotation in annotations]
        # types first, as a list of text would become an array, too
        plain = {*map(type, boxes)} <= {list, tuple} and {*map(len, boxes)} == {4}
        if plain and {*map(type, chain.from_iterable(boxes))} <= NUMBERS:
            values = chain.from_iterable(boxes)
            try:
                array = np.fromiter(values, float, 4 * len(boxes)).reshape(-1, 4)
            except OverflowError:  # an integer of hundreds of digits
                array = np.full((1, 4), _INF)
            if (np.abs(array) <= LARGEST).all():  # NaN is not
                return array
        wrong = [a for a in annotations if box_fault(a["bbox"])]
        what = f"boxes are not x, y, width and height ({box_fault(wrong[0]['bbox'])})"
        self._refuse_some(wrong, len(boxes), what, _short(wrong[0]))

    def _refuse_fractions(self, boxes: np.ndarray, limits: np.ndarray) -> None:
        """Boxes are in pixels, not in parts of an image."""
        if np.abs(boxes).max() <= 1 and limits.min() > 2:
            example = _short(self.content["annotations"][0])
            what = "boxes lie between 0 and 1: expected pixels, not parts of the image"
            self._refuse_some(boxes, len(boxes), what, example)

    def _fill(self, boxes: np.ndarray) -> None:
        """``area`` and ``iscrowd`` where they are missing; those that are none."""
        annotations = self.content["annotations"]
        # the area, on which only the size ranges of other metrics depend
        areas = [annotation.get("area") for annotation in annotations]
        if {*map(type, areas)} <= NUMBERS and 0 < min(areas) <= max(areas) < _INF:
            lacking = []
        else:
            lacking = [i for i, area in enumerate(areas) if area is None or area == 0]
            wrong = [
                a
                for a, area in zip(annotations, areas)
                if area is not None and not (type(area) in NUMBERS and 0 <= area < _INF)
            ]
            if wrong:
                what = "annotations have an area that is none"
                self._refuse_some(wrong, len(areas), what, _short(wrong[0]))
        for i in lacking:
            annotations[i]["area"] = abs(float(boxes[i, 2] * boxes[i, 3]))
        empty = sum(areas[i] == 0 and annotations[i]["area"] > 0 for i in lacking)
        self._note(empty, "annotations have an area of 0: that of the box is taken")
        # crowds, and what the file says to ignore
        for annotation in annotations:
            annotation.setdefault("iscrowd", 0)
        if wrong := [a for a in annotations if a["iscrowd"] not in (0, 1)]:
            what = "annotations have an iscrowd that is not 0 or 1"
            self._refuse_some(wrong, len(areas), what, _short(wrong[0]))
        ignored = [a for a in annotations if a.get("ignore") and not a["iscrowd"]]
        for annotation in ignored:
            annotation["iscrowd"] = 1
        what = "annotations are marked `ignore`: they count as crowds"
        self._note(len(ignored), what)

    def _refuse_corners(self, boxes: np.ndarray, limits: np.ndarray) -> None:
        """Boxes are x, y, width, height, and not x1, y1, x2, y2."""
        sides = boxes[:, 2:] - boxes[:, :2]
        beyond = _beyond(boxes, limits)
        as_corners = (sides > 0).all() and (boxes[:, 2:] <= limits + 2).all()
        if not as_corners:
            return
        # the area tells; without it, boxes that do not fit
        annotations = self.content["annotations"]
        area = np.array([float(a["area"]) for a in annotations])
        own = np.abs(area - boxes[:, 2] * boxes[:, 3]) <= 0.01 * area + 1
        other = np.abs(area - sides.prod(1)) <= 0.01 * area + 1
        told = (~own).mean() > 0.5 and other[~own].mean() > 0.9
        if told or beyond.mean() > 0.05:
            wrong, total = np.flatnonzero(beyond), len(boxes)
            example = annotations[wrong[0] if len(wrong) else 0]
            self._refuse(
                "its boxes are x1, y1, x2, y2, as it seems; expected x, y, width, "
                f"height. {len(wrong):,} of {total:,} reach clearly beyond their "
                f"image, {(~own).sum():,} of {total:,} have an area that is not width "
                f"x height; the first: {_short(example)}"
            )

    def _refuse_copies(self, boxes: np.ndarray) -> None:
        """Annotations that are there twice were joined twice."""
        annotations = self.content["annotations"]
        keys = [[a[key] for a in annotations] for key in ("image_id", "category_id")]
        # equal rows have equal sums: quick, and seldom equal by accident
        rows = np.concatenate([np.array(keys, float).T, boxes], 1)
        sums = (rows * np.random.default_rng(0).random(6)).sum(1)
        allowed = len(boxes) - MAX_COPIES * len(boxes)
        if len(np.unique(sums)) >= allowed:
            return
        ids = [*zip(*keys)]
        seen = Counter((*key, *box) for key, box in zip(ids, boxes.tolist()))
        if len(seen) < allowed:
            wrong = [
                (*i, *b) for i, b in zip(ids, boxes.tolist()) if seen[(*i, *b)] > 1
            ]
            what = "annotations are copies: same image, class and box as another"
            first = "image {}, category {}, box {} {} {} {}".format(*wrong[0])
            self._refuse_some(wrong, len(boxes), what, first)

    def _correct(self, boxes: np.ndarray, limits: np.ndarray) -> None:
        """Put right what is plainly meant; drop what is no object."""
        annotations = self.content["annotations"]
        # drawn from another corner
        negative = boxes[:, 2:] < 0
        turned = negative.any(1)
        boxes[:, :2] += np.where(negative, boxes[:, 2:], 0)
        boxes[:, 2:] = np.abs(boxes[:, 2:])
        self._note(
            turned.sum(),
            "boxes have a negative width or height, as drawn from another corner: they "
            "are turned",
            annotations[turned.argmax()],
        )
        # without an extent, or beside the image
        ends = boxes[:, :2] + boxes[:, 2:]
        empty = (boxes[:, 2:] == 0).any(1)
        outside = ~empty & ((boxes[:, :2] >= limits) | (ends <= 0)).any(1)
        beyond = _beyond(boxes, limits) & ~empty
        if beyond.mean() > MAX_BEYOND:
            wrong = np.flatnonzero(beyond)
            what = (
                "boxes reach clearly beyond their image. Expected x, y (the upper left "
                "corner), width, height in its pixels: were images resized or turned "
                "after they were labelled, or is it the centre that stands there?"
            )
            example = annotations[wrong[0]]
            self._refuse_some(wrong, len(boxes), what, _short(example))
        self._note(
            empty.sum(),
            "boxes have no width or no height: they are dropped",
            annotations[empty.argmax()],
        )
        self._note(
            outside.sum(),
            "boxes lie outside their image: they are dropped",
            annotations[outside.argmax()],
        )
        cut = beyond & ~outside
        self._note(
            cut.sum(),
            "boxes reach beyond their image: they are cut at its border",
            annotations[cut.argmax()],
        )
        boxes[cut, :2] = boxes[cut, :2].clip(0)
        boxes[cut, 2:] = np.minimum(ends[cut], limits[cut]) - boxes[cut, :2]
        for index in np.flatnonzero(turned | cut).tolist():
            annotations[index]["bbox"] = boxes[index].tolist()
        gone = empty | outside
        if gone.any():
            kept = [a for a, drop in zip(annotations, gone.tolist()) if not drop]
            self.content["annotations"] = kept

    def _note(self, count: int, what: str, example: Record | None = None) -> None:
        if count:
            first = f"; the first: {_short(example)}" if example else ""
            self.notes.append(Note(int(count), self.boxes, what + first))


def box_fault(box: Any) -> str | None:
    """Why a value is no box of four numbers; None where it is one."""
    if not isinstance(box, (list, tuple)):
        return f"a list of four is expected, this is {str(box)[:40]!r}"
    if len(box) != 4:
        return f"{len(box)} numbers in place of four"
    if wrong := [v for v in box if type(v) not in NUMBERS]:
        return f"{wrong[0]!r} is no number"
    if wrong := [v for v in box if not abs(v) <= LARGEST]:
        return f"{wrong[0]} is no place on an image"
    return None


def image_fault(image: Record) -> str | None:
    """Why a record is not one of an image; None where it is. A size may be missing."""
    if not _file_of(image):
        return "no text as its 'file_name'"
    for side in ("width", "height"):
        value = image.get(side)
        if value is None:
            continue
        if type(value) not in NUMBERS or not (
            0 <= value <= LARGEST and value == int(value)
        ):
            return f"a {side} that is no number of pixels: {value!r}"
    return None


def category_ids(
    categories: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[int]:
    """Ids of the categories of these names, one each, in the order of the names.

    Raises:
        AnnotationError: a name is missing from the categories, or there twice.
    """
    # a name that is there twice could belong to either
    by_name: dict[str, list[int]] = {}
    for category in categories:
        by_name.setdefault(category["name"], []).append(category["id"])
    wrong = [n for n in names if len(by_name.get(n, ())) != 1]
    if wrong:
        spelled = {_plain(name): name for name in by_name}
        like = [spelled[_plain(n)] for n in wrong if _plain(n) in spelled]
        hint = f"; there is {like[0]!r}, spelled otherwise" if like else ""
        raise AnnotationError(
            f"{len(wrong)} of {len(names)} classes are not exactly once among "
            f"the categories of the annotation file: {wrong[:5]}. The file has "
            f"{list(by_name)[:5]}, ...{hint}; make metainfo.classes and the file agree."
        )
    return [by_name[name][0] for name in names]


def picture_size(path: str | Path) -> Size:
    """Width and height of an image as it is loaded, with EXIF's turn; reads no pixel.

    Raises:
        OSError: it is missing (FileNotFoundError), or no image.
    """
    try:
        with Image.open(path) as file:
            turn = file.getexif().get(_ORIENTATION, 1)
            return file.size[::-1] if turn in (5, 6, 7, 8) else file.size
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is not there") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read image {path}: {error}") from error


def _plain(name: str) -> str:
    """A name without what people overlook: case, blanks, Unicode form."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(text.replace("_", " ").replace("-", " ").split())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _file_of(image: Record) -> str | None:
    """The file of an image: COCO's name, or where LVIS downloads it."""
    name = image.get("file_name", image.get("coco_url"))
    return name if _is_text(name) else None


def _beyond(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(N,) which boxes leave their image by more than 2 pixels and 1 per cent."""
    slack = np.maximum(2, 0.01 * limits)
    ends = boxes[:, :2] + boxes[:, 2:]
    low, high = np.minimum(boxes[:, :2], ends), np.maximum(boxes[:, :2], ends)
    return ((low < -slack) | (high > limits + slack)).any(1)


def _box_of_outline(outline: Any) -> list[float] | None:
    """The box xywh around polygons; None where there are none."""
    try:
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in outline]).astype(float)
    except (TypeError, ValueError):
        return None
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _short(record: Any) -> str:
    """A record in one line; long values are left out."""
    if not isinstance(record, Mapping):
        return str(record)[:120]
    parts = {k: v for k, v in record.items() if len(str(v)) <= 60}
    return str(parts)[:200]
