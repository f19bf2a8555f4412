"""Average precision under the rules of COCO and LVIS, all of it from arrays.

The matching is faster-coco-eval's. What differs between the protocols (which boxes
of an image or a class count, which classes of an image are verified) is decided
before it, on arrays. Then classes do not depend on each other, and are evaluated in
parts that fit the memory.

A *pair* is an image and a class, as one number: image index * K + class index.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

ALL = 10**9  # boxes: no cap
CHUNK_BOXES, CHUNK_PAIRS = 200_000, 400_000
Array = np.ndarray
Record = Mapping[str, Any]


class Rules(NamedTuple):
    """Which predictions count.

    Attributes:
        name: what the metrics are called, in full.
        federated: LVIS's rule (Gupta et al., 2019): in an image, only classes
            that are there, or verified not to be, count; of a class that is not
            exhaustively annotated, what matches nothing does not count; there
            are no crowds.
        per_pair: boxes per class and image, COCO's cap.
        per_image: boxes per image, LVIS's cap.
        per_class: boxes per class over the whole data set, the cap of fixed AP
            (Dave et al., 2021).
    """

    name: str
    federated: bool = False
    per_pair: int = ALL
    per_image: int = ALL
    per_class: int = ALL

    @property
    def needed(self) -> int:
        """Boxes of an image that a model has to give, so that no rule lacks one."""
        return min(self.per_pair, self.per_image)


RULES = {
    "coco": Rules("COCO AP (100 boxes per class and image)", per_pair=100),
    "lvis": Rules("LVIS AP, standard (300 boxes per image)", True, per_image=300),
    "lvis-fixed": Rules(
        "LVIS AP, fixed (10,000 boxes per class)", federated=True, per_class=10_000
    ),
}


class Predictions(NamedTuple):
    """N predicted boxes.

    Attributes:
        images: (N,) image ids.
        categories: (N,) category ids.
        boxes: (N, 4) xywh in pixels; xyxy, as models give them, where ``corners``.
        scores: (N,)
    """

    images: Array
    categories: Array
    boxes: Array
    scores: Array
    corners: bool = False

    def xywh(self, rows: Array) -> Array:
        """Some of the boxes (n, 4), in float64."""
        boxes = self.boxes[rows].astype(float)
        if self.corners:
            boxes[:, 2:] -= boxes[:, :2]
        return boxes

    @classmethod
    def from_coco(cls, results: Sequence[Record]) -> "Predictions":
        """From COCO-format results, a list of dictionaries."""
        return cls(
            np.array([r["image_id"] for r in results], np.int64),
            np.array([r["category_id"] for r in results], np.int64),
            np.array([r["bbox"] for r in results], float).reshape(-1, 4),
            np.array([r["score"] for r in results], float),
        )


class GroundTruth:
    """COCO- or LVIS-format annotations, and what an image verifies.

    Args:
        annotations: the file's dictionary; it is not changed. Ids are whole numbers.
        names: classes that are asked for; others do not count. None for all.

    Attributes:
        names: K class names, in the order of their ids; ``frequency`` is LVIS's.
        categories: (K,) sorted category ids.
        images: sorted image ids.
        boxes: annotations of the classes that are asked for.
        pairs: the pair of each box.
        negative, unfinished: sorted pairs that LVIS's images list as verified to be
            absent, and as not exhaustively annotated.

    Raises:
        ValueError: a name is not a category of the file, or a category or an image is
            there twice, or an annotation is of an image that is not.
    """

    def __init__(self, annotations: Record, names: Sequence[str] | None = None) -> None:
        images, categories = annotations["images"], annotations["categories"]
        _check_unique([c["name"] for c in categories], "category names")
        _check_unique([i["id"] for i in images], "image ids")
        # classes in the order of their ids, whatever the order of names or file
        by_name = {c["name"]: c for c in categories}
        if unknown := [n for n in names or () if n not in by_name]:
            raise ValueError(
                f"{len(unknown)} of {len(names or ())} classes are not among the "
                f"categories of the annotation file: {unknown[:5]}. It has "
                f"{list(by_name)[:5]}, ...; make metainfo.classes and the file agree."
            )
        chosen = [by_name[n] for n in names] if names else [*categories]
        chosen.sort(key=lambda c: c["id"])
        self.names = [c["name"] for c in chosen]
        self.frequency = [c.get("frequency") for c in chosen]
        self.categories = _ids([c["id"] for c in chosen], "category")
        self.images = np.sort(_ids([i["id"] for i in images], "image"))
        # boxes of the classes asked for, and the pair of each
        asked = set(self.categories.tolist())
        boxes = annotations["annotations"]
        self.boxes = [box for box in boxes if box["category_id"] in asked]
        ids = [(box["image_id"], box["category_id"]) for box in self.boxes]
        self.pairs = self.pair(*np.array(ids, np.int64).reshape(-1, 2).T)
        # LVIS's lists; a file without any is not LVIS's
        self.lists_absent = any("neg_category_ids" in i for i in images)
        self.negative = self._listed(images, "neg_category_ids")
        self.unfinished = self._listed(images, "not_exhaustive_category_ids")

    def pair(self, images: Array, categories: Array) -> Array:
        """Pairs of image and category ids.

        Raises:
            ValueError: an id that is not of this ground truth.
        """
        image = _index(self.images, images, "image")
        label = _index(self.categories, categories, "category")
        return image * len(self.categories) + label

    def _listed(self, images: Sequence[Record], key: str) -> Array:
        """Sorted pairs that the images list under a key."""
        # (image id, category id) of the classes asked for
        asked = {*self.categories.tolist()}
        rows = [(i["id"], c) for i in images for c in i.get(key) or () if c in asked]
        return np.unique(self.pair(*np.array(rows, np.int64).reshape(-1, 2).T))

    def objects(self, federated: bool) -> Array:
        """Indices of the boxes that a protocol knows."""
        if not federated:
            return np.arange(len(self.boxes))
        # the official lvis drops annotations without an area
        areas = [min(b.get("area", 1), b["bbox"][2] * b["bbox"][3]) for b in self.boxes]
        return np.flatnonzero(np.array(areas) > 0)

    def absent(self, federated: bool) -> Array:
        """Sorted pairs whose class is verified not to be in the image.

        LVIS lists them; where all is annotated, it is every class without a box.
        """
        # an image's own classes, and the unfinished ones, are not verified
        listed = self.negative
        if not federated:
            listed = np.arange(len(self.images) * len(self.categories))
        return np.setdiff1d(np.setdiff1d(listed, self.pairs), self.unfinished)

    @cached_property
    def verified(self) -> Array:
        """Pairs whose class is in the image, or verified not to be: LVIS's.

        Raises:
            ValueError: no image lists absent classes: the file is not LVIS's.
        """
        if not self.lists_absent:
            raise ValueError(
                "LVIS's rules need `neg_category_ids` of each image, the classes "
                "verified to be absent; no image of this file has it. Where all is "
                "annotated, COCO's rules fit: rules=('coco',)."
            )
        return np.union1d(self.pairs[self.objects(True)], self.negative)


def average_precision(
    ground_truth: GroundTruth,
    predictions: Predictions,
    rules: Rules,
    groups: Mapping[str, Sequence[str]] | None = None,
    table: Array | None = None,
) -> dict[str, float]:
    """The metrics of :func:`summary`, and by LVIS's rules ``APr``, ``APc``, ``APf``.

    ``table`` is that of :func:`precision_table`, where it is there already.

    >>> box = dict(image_id=7, category_id=1, bbox=[10, 10, 20, 20])
    >>> cat = dict(id=1, name="cat")
    >>> coco = dict(images=[dict(id=7)], categories=[cat], annotations=[box])
    >>> shifted = dict(box, bbox=[13, 10, 20, 20], score=0.9)  # IoU 17 / 23
    >>> predictions = Predictions.from_coco([shifted])
    >>> average_precision(GroundTruth(coco), predictions, RULES["coco"])
    {'AP': 0.5, 'AP50': 1.0, 'AP75': 0.0}
    """
    # (10, 101, K), of which groups are columns
    if table is None:
        table = precision_table(ground_truth, predictions, rules)
    metrics = summary(ground_truth, table, groups or {})
    for kind in "rcf" if rules.federated else "":
        members = [frequency == kind for frequency in ground_truth.frequency]
        metrics[f"AP{kind}"] = _mean_precision(table[:, :, members])
    return metrics


def precision_table(
    ground_truth: GroundTruth, predictions: Predictions, rules: Rules
) -> Array:
    """Precision at 10 IoUs (0.50 to 0.95) and 101 recalls.

    Returns:
        (10, 101, K) in the order of ``ground_truth.categories``; -1 where a class has
        no object.
    """
    table = np.full((10, 101, len(ground_truth.categories)), -1.0)
    for labels, parts in _runs(ground_truth, predictions, rules):
        # of the parts of a class only what was matched is kept: by class, then image
        matched: list[Any] = []
        boxes = 1
        for run, _ in parts:
            matched += run._evalImgs_cpp
            boxes = max(boxes, *run.params.maxDets)
        run._evalImgs_cpp, run._paramsEval.maxDets = matched, [boxes]
        run._paramsEval.imgIds = range(len(matched) // (labels.stop - labels.start))
        run.accumulate()
        table[:, :, labels] = run.eval["precision"][:, :, :, 0, 0]
    return table


def summary(
    ground_truth: GroundTruth, table: Array, groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Metrics in [0, 1] from a precision table.

    Args:
        ground_truth: what the table was made with.
        table: of :func:`precision_table`.
        groups: group name -> class names.

    Returns:
        ``AP`` (IoU 0.50 to 0.95), ``AP50``, ``AP75``; ``<group>_AP``,
        ``<group>_AP50``; NaN where a group has no object.
    """
    # IoU 0.5 is the first of ten, 0.75 the sixth
    parts = dict(AP=table, AP50=table[0], AP75=table[5])
    metrics = {key: _mean_precision(part) for key, part in parts.items()}
    for group, names in groups.items():
        part = table[:, :, [ground_truth.names.index(n) for n in names]]
        metrics[f"{group}_AP"] = _mean_precision(part)
        metrics[f"{group}_AP50"] = _mean_precision(part[0])
    return metrics


def class_metrics(
    ground_truth: GroundTruth, table: Array
) -> dict[str, dict[str, float]]:
    """``AP``, ``AP50`` and the number of ``objects`` of each class, by its name.

    Args:
        ground_truth: what the table was made with.
        table: of :func:`precision_table`.

    Returns:
        Class name -> metrics, in the order of ``ground_truth.names``; AP in [0, 1], NaN
        where a class has no object.
    """
    labels = ground_truth.pairs % len(ground_truth.names)
    objects = np.bincount(labels, minlength=len(ground_truth.names)).tolist()
    return {
        name: dict(
            AP=_mean_precision(table[:, :, k]),
            AP50=_mean_precision(table[0, :, k]),
            objects=objects[k],
        )
        for k, name in enumerate(ground_truth.names)
    }


def _mean_precision(table: Array) -> float:
    """Mean over classes with objects; -1 marks the others."""
    valid = table[table > -1]
    return float(valid.mean()) if valid.size else float("nan")


def outcomes(
    ground_truth: GroundTruth, predictions: Predictions, rules: Rules
) -> Array:
    """What each prediction is at IoU 0.5.

    Returns:
        (N,) int8: 1 right, 0 wrong, -1 does not count (beyond a cap, class not
        verified in the image, on a crowd).
    """
    result = np.full(len(predictions.scores), -1, np.int8)
    runs = (parts for _, parts in _runs(ground_truth, predictions, rules, [0.5]))
    for run, rows in chain.from_iterable(runs):
        result[rows] = 0
        run.accumulate()
        # "prediction_annotation", ids of the evaluated part
        for key in run.eval["matched"]:
            box, annotation = map(int, key.split("_"))
            target = run.cocoGt.anns[annotation]
            ignored = target["ignore"] or target["area"] > 1e10
            result[rows[box - 1]] = -1 if ignored else 1
    # what matches nothing may be an object that nobody annotated
    pairs = ground_truth.pair(predictions.images, predictions.categories)
    if rules.federated:
        result[(result == 0) & np.isin(pairs, ground_truth.unfinished)] = -1
    return result


def _check_numbers(predictions: Predictions) -> None:
    """NaN would be ranked anywhere, and match anything."""
    wrong = np.isnan(predictions.scores) | ~np.isfinite(predictions.boxes).all(1)
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} predictions have a score or a box that is no number, in "
            f"the images {np.unique(predictions.images[wrong])[:5].tolist()}: has the "
            "training diverged?"
        )


def _by_class(
    ground_truth: GroundTruth, predictions: Predictions, rules: Rules
) -> tuple[Array, Array]:
    """Predictions within the cap of their image, by class, as predicted within it.

    Returns:
        Their rows (n,), and how many each class has (K,).
    """
    keep: Array | slice = slice(None)
    if rules.per_image < ALL:
        within = _within_image(ground_truth, predictions, rules.per_image)
        keep = keep if within.all() else np.flatnonzero(within)
    known, ids = ground_truth.categories, predictions.categories[keep]
    labels = _index(known, ids, "category").astype(np.min_scalar_type(len(known)))
    order = np.argsort(labels, kind="stable")
    rows = order if isinstance(keep, slice) else keep[order]
    return rows, np.bincount(labels, minlength=len(known))


def _within_image(
    ground_truth: GroundTruth, predictions: Predictions, cap: int
) -> Array:
    """Which predictions are among the best of their image: (N,) bool."""
    image = _index(ground_truth.images, predictions.images, "image")
    # mostly a model gives no more, and there is nothing to sort
    many = np.flatnonzero((np.bincount(image) > cap)[image])
    keep = np.ones(len(image), bool)
    keep[many] = _best(image[many], predictions.scores[many], cap)
    return keep


def _counted(
    ground_truth: GroundTruth, predictions: Predictions, rows: Array, rules: Rules
) -> tuple[Array, Array]:
    """Those of some rows, all boxes of some classes, that count, by class and image.

    Returns:
        Rows (n,) and their pairs.
    """
    number, scores = len(ground_truth.categories), predictions.scores[rows]
    pairs = ground_truth.pair(predictions.images[rows], predictions.categories[rows])
    keep = _best(pairs % number, scores, rules.per_class)
    keep &= _best(pairs, scores, rules.per_pair)
    # the official lvis drops boxes without an area
    if rules.federated:
        keep &= _look_up(ground_truth.verified, pairs)[1]
        keep &= predictions.xywh(rows)[:, 2:].prod(1) > 0
    rows, pairs = rows[keep], pairs[keep]
    order = np.lexsort((pairs, pairs % number))
    return rows[order], pairs[order]


def _best(key: Array, scores: Array, cap: int) -> Array:
    """Which boxes are among the best so many of their key: (n,) bool.

    Among equal scores the earlier box stays, as in the official implementations.
    """
    keep = np.ones(len(key), bool)
    if cap < ALL:
        order = np.lexsort((-scores, key))
        keep[order] = _rank_in_order(key[order]) < cap
    return keep


def _rank_in_order(key: Array) -> Array:
    """0, 1, 2, ... within each stretch of equal keys, none of them below 0."""
    # where each stretch begins, repeated over its length
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return np.arange(len(key)) - np.repeat(first, np.diff(first, append=len(key)))


def _runs(
    ground_truth: GroundTruth,
    predictions: Predictions,
    rules: Rules,
    iou: Sequence[float] | None = None,
) -> Iterator[tuple[slice, Iterator[tuple[COCOeval_faster, Array]]]]:
    """Match some classes at a time, and of one with many boxes some images.

    Yields:
        the classes' indices, and the parts: what was matched, and which predictions,
        in the order of its ids.
    """
    _check_numbers(predictions)
    rows, counts = _by_class(ground_truth, predictions, rules)
    # the annotated objects, by class, then image
    number = len(ground_truth.categories)
    known = ground_truth.objects(rules.federated)
    targets = ground_truth.pairs[known]
    order = np.lexsort((targets, targets % number))
    known, targets = known[order], targets[order]
    # the classes from start to stop are a slice of each
    sizes = np.bincount(targets % number, minlength=number)
    ends, target_ends = (np.append(0, np.cumsum(n)) for n in (counts, sizes))

    def parts(labels: slice) -> Iterator[tuple[COCOeval_faster, Array]]:
        """Several classes have few boxes; where one is cut, between two images."""
        mine = rows[ends[labels.start] : ends[labels.stop]]
        mine, pairs = _counted(ground_truth, predictions, mine, rules)
        theirs = slice(target_ends[labels.start], target_ends[labels.stop])
        cuts = pairs[CHUNK_BOXES::CHUNK_BOXES]
        at = np.searchsorted(pairs, cuts)
        their_at = np.searchsorted(targets[theirs], cuts)
        for some, objects in zip(
            np.split(mine, at), np.split(known[theirs], their_at), strict=True
        ):
            records = _records(objects, some, ground_truth, predictions, rules)
            run = _matcher(*records, labels, ground_truth, rules.federated)
            # by default COCO's ten, 0.50 to 0.95
            if iou is not None:
                run.params.iouThrs = np.array(iou)
            run.evaluate()
            yield run, some

    for start, stop in _chunks(counts, sizes):
        yield slice(start, stop), parts(slice(start, stop))


def _chunks(boxes: Array, objects: Array) -> Iterator[tuple[int, int]]:
    """Ranges of classes with so few boxes and pairs that their evaluation is small."""
    # memory grows with the boxes, and with images (of the widest class) * classes
    start, total, widest = 0, 0, 0
    for label, (count, width) in enumerate(zip(boxes, boxes + objects)):
        total, widest = total + count, max(widest, width)
        number = label + 1 - start
        if number > 1 and (total > CHUNK_BOXES or widest * number > CHUNK_PAIRS):
            yield start, label
            start, total, widest = label, count, width
    yield start, len(boxes)


def _records(
    known: Array,
    rows: Array,
    ground_truth: GroundTruth,
    predictions: Predictions,
    rules: Rules,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Some objects and predictions as COCO has them, each with its ``pair``."""
    objects = [
        dict(_target(ground_truth.boxes[i], rules.federated), pair=pair)
        for i, pair in zip(known, ground_truth.pairs[known].tolist())
    ]
    pairs = ground_truth.pair(predictions.images[rows], predictions.categories[rows])
    columns = predictions.xywh(rows), predictions.scores[rows], pairs
    detections = [
        dict(bbox=box, area=box[2] * box[3], score=score, iscrowd=0, pair=pair)
        for box, score, pair in zip(*(column.tolist() for column in columns))
    ]
    return objects, detections


def _matcher(
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    labels: slice,
    ground_truth: GroundTruth,
    federated: bool,
) -> COCOeval_faster:
    """faster-coco-eval of some classes, from boxes that have their ``pair``.

    Each class sees only images where it has a box, numbered anew in their order:
    the pairs of an image and a class that has none there are most of the work.
    """
    every = range(labels.start, labels.stop)
    # the pairs that have a box, by class, and the rank of each in its class
    number = len(ground_truth.categories)
    pairs = np.array([b["pair"] for b in (*objects, *detections)], np.int64)
    pairs, counts = np.unique(pairs, return_counts=True)
    order = np.lexsort((pairs, pairs % number))
    ranks = _rank_in_order(pairs[order] % number) + 1
    image_of = dict(zip(pairs[order].tolist(), ranks.tolist()))
    # the new image i is the i-th image of every class, and has what LVIS lists there
    images: list[dict[str, Any]] = [
        dict(id=i, neg_category_ids=every, not_exhaustive_category_ids=[])
        for i in range(1, max(image_of.values(), default=1) + 1)
    ]
    for pair in np.intersect1d(pairs, ground_truth.unfinished).tolist():
        listed = images[image_of[pair] - 1]["not_exhaustive_category_ids"]
        listed.append(pair % number)

    def index(boxes: list[dict[str, Any]]) -> COCO:
        """Boxes, each of an image and a class, with ids from 1."""
        for n, box in enumerate(boxes, 1):
            box.update(id=n, image_id=image_of[box["pair"]])
            box["category_id"] = box["pair"] % number
        categories = [dict(id=i, name=str(i), frequency="f") for i in every]
        content = COCO()
        content.dataset = dict(images=images, categories=categories, annotations=boxes)
        content.createIndex()
        return content

    # both sides see the same images and classes
    quiet: dict[str, Any] = dict(print_function=lambda *_: None, lvis_style=federated)
    quiet["separate_eval"] = True  # of matching and precision
    run = COCOeval_faster(index(objects), index(detections), "bbox", **quiet)
    # the caps are ours; the library reserves memory for as many as it is told
    run.params.maxDets = [int(counts.max(initial=1))]
    run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
    return run


def _target(box: Record, federated: bool) -> dict[str, Any]:
    """An annotation: COCO ignores crowds, LVIS what is flagged ``ignore``.

    An area beyond all ranges is ignored too, and matched as any object, not as a crowd.
    """
    # 2e10 is beyond all ranges of area
    width, height = box["bbox"][2:]
    area, crowd = box.get("area", width * height), int(box.get("iscrowd", 0))
    if federated:
        area, crowd = 2e10 if box.get("ignore") else area, 0
    return dict(bbox=box["bbox"], area=area, iscrowd=crowd)


def _ids(values: Sequence[Any], what: str) -> Array:
    """Ids as an array; they have to be whole numbers of 64 bits."""
    if wrong := [v for v in values if type(v) is not int or abs(v) >= 2**62]:
        raise ValueError(f"{what} ids are whole numbers below 2^62, got {wrong[0]!r}")
    return np.array(values, np.int64)


def _check_unique(values: Sequence[Any], what: str) -> None:
    """Refuse what cannot be told apart."""
    if twice := [value for value, number in Counter(values).items() if number > 1]:
        raise ValueError(
            f"{what} of the annotation file are there twice: {twice[:5]}. Which boxes "
            "are whose cannot be told: give each its own."
        )


def _index(known: Array, ids: Array, what: str) -> Array:
    """Positions of ids in a sorted array."""
    where, there = _look_up(known, ids)
    if not there.all():
        wrong = np.setdiff1d(ids, known)[:5].tolist()
        raise ValueError(
            f"{what} ids {wrong} of the predictions or annotations are not in the "
            "annotation file: they belong to another one."
        )
    return where


def _look_up(known: Array, ids: Array) -> tuple[Array, Array]:
    """Positions of ids (N,) in a sorted array, and whether each is there."""
    # searchsorted finds where an id would stand: it has to stand there
    where = np.searchsorted(known, ids)
    np.minimum(where, max(len(known) - 1, 0), out=where)
    return where, (known[where] == ids if len(known) else np.zeros(len(ids), bool))
