"""Average precision under the rules of COCO and LVIS, all of it from arrays.

The matching is faster-coco-eval's. What differs between the protocols (which boxes
of an image or a class count, which classes of an image are verified) is done here,
before it, on arrays; then classes do not depend on each other, and are evaluated in
parts that fit the memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

ALL = 10**9  # boxes: no cap
CHUNK_BOXES, CHUNK_PAIRS = 200_000, 400_000
Array = np.ndarray


class Rules(NamedTuple):
    """Which predictions count.

    Attributes:
        name: what the figures are called, in full.
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


RULES = {
    "coco": Rules("COCO AP (100 boxes per class and image)", per_pair=100),
    "lvis": Rules(
        "LVIS AP, standard (300 boxes per image)", federated=True, per_image=300
    ),
    "lvis-fixed": Rules(
        "LVIS AP, fixed (10,000 boxes per class, no cap per image)",
        federated=True,
        per_class=10_000,
    ),
}


class Predictions(NamedTuple):
    """N boxes that were found.

    Attributes:
        images: (N,) image ids.
        categories: (N,) category ids.
        boxes: (N, 4) xywh in pixels.
        scores: (N,)
    """

    images: Array
    categories: Array
    boxes: Array
    scores: Array

    @classmethod
    def from_coco(cls, results: Sequence[Mapping[str, Any]]) -> "Predictions":
        """From COCO-format results, a list of dictionaries."""
        return cls(
            np.array([r["image_id"] for r in results], np.int64),
            np.array([r["category_id"] for r in results], np.int64),
            np.array([r["bbox"] for r in results], float).reshape(-1, 4),
            np.array([r["score"] for r in results], float),
        )

    def take(self, which: Array) -> "Predictions":
        """Those of a mask or of indices."""
        return Predictions(*(values[which] for values in self))

    def check(self) -> None:
        """Refuse what cannot be ranked or matched.

        Raises:
            ValueError: a score is NaN, or a box no number; names the images.
        """
        wrong = np.isnan(self.scores) | ~np.isfinite(self.boxes).all(1)
        if wrong.any():
            raise ValueError(
                f"{wrong.sum()} predictions have a score or a box that is no number, "
                f"in the images {np.unique(self.images[wrong])[:5].tolist()}: has the "
                "training diverged?"
            )


class Truth:
    """COCO- or LVIS-format annotations, and what an image verifies.

    Args:
        annotations: the file's dictionary; it is not changed. Ids are whole numbers.
        names: classes that are asked for; others do not count. None for all.

    Raises:
        ValueError: a name is not a category of the file, or a category or an image is
            there twice, or an annotation is of an image that is not.
    """

    def __init__(
        self, annotations: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> None:
        categories = {c["name"]: c for c in annotations["categories"]}
        if len(categories) != len(annotations["categories"]):
            counts = Counter(c["name"] for c in annotations["categories"])
            twice = [name for name, number in counts.items() if number > 1]
            raise ValueError(
                f"categories of the annotation file have the same name twice: "
                f"{twice[:5]}. Labels are matched by name: rename one of each."
            )
        unknown = [n for n in names or () if n not in categories]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(names or ())} classes are not among the "
                f"categories of the annotation file: {unknown[:5]}. It has "
                f"{list(categories)[:5]}, ...; make metainfo.classes and the file "
                "agree."
            )
        chosen = [categories[n] for n in names] if names else [*categories.values()]
        chosen.sort(key=lambda c: c["id"])
        self.names = [c["name"] for c in chosen]
        self.categories = _ids([c["id"] for c in chosen], "category")
        self.frequency = [c.get("frequency") for c in chosen]
        images = annotations["images"]
        self.images = np.unique(_ids([i["id"] for i in images], "image"))
        if len(self.images) != len(images):
            counts = Counter(i["id"] for i in images)
            twice = [i for i, number in counts.items() if number > 1]
            raise ValueError(
                f"image ids are in the annotation file twice: {twice[:5]}. Which boxes "
                "are whose cannot be told: give each image an id of its own."
            )
        self.lists_absent = any("neg_category_ids" in i for i in images)
        asked = set(self.categories.tolist())
        self.boxes = [
            a for a in annotations["annotations"] if a["category_id"] in asked
        ]
        self.pairs = self.pair(
            np.array([a["image_id"] for a in self.boxes], np.int64),
            np.array([a["category_id"] for a in self.boxes], np.int64),
        )
        self.negative = self._listed(images, "neg_category_ids")
        self.unfinished = self._listed(images, "not_exhaustive_category_ids")

    def objects(self, federated: bool) -> Array:
        """Indices of ``boxes`` that a protocol knows.

        The official lvis drops annotations without an area.
        """
        if not federated:
            return np.arange(len(self.boxes))
        return np.flatnonzero([_area(box) > 0 for box in self.boxes]).astype(int)

    def pair(self, images: Array, categories: Array) -> Array:
        """Number of an (image, class) pair: image index * K + class index.

        Raises:
            ValueError: an id that is not of this truth.
        """
        image = _index(self.images, images, "image")
        label = _index(self.categories, categories, "category")
        return image * len(self.categories) + label

    def _listed(self, images: Sequence[Mapping[str, Any]], key: str) -> Array:
        """Sorted numbers of the pairs that the images list under a key."""
        asked = set(self.categories.tolist())
        rows = [(i["id"], c) for i in images for c in i.get(key) or () if c in asked]
        ids = np.array(rows, np.int64).reshape(-1, 2)
        return np.unique(self.pair(ids[:, 0], ids[:, 1]))

    def absent(self, federated: bool) -> Array:
        """Sorted numbers of the pairs whose class is verified not to be there.

        LVIS lists them; where all is annotated, it is every class without a box.
        """
        listed = self.negative
        if not federated:
            listed = np.arange(len(self.images) * len(self.categories))
        return np.setdiff1d(np.setdiff1d(listed, self.pairs), self.unfinished)

    def verified(self) -> Array:
        """Numbers of the pairs whose class is there, or verified not to be: LVIS's.

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


def _ids(values: Sequence[Any], what: str) -> Array:
    """Ids as an array; they have to be whole numbers of 64 bits."""
    wrong = [v for v in values if type(v) is not int or abs(v) >= 2**62]
    if wrong:
        raise ValueError(f"{what} ids are whole numbers below 2^62, got {wrong[0]!r}")
    return np.array(values, np.int64)


def _area(box: Mapping[str, Any]) -> float:
    width, height = box["bbox"][2:]
    return min(box.get("area", width * height), width * height)


def _index(known: Array, ids: Array, what: str) -> Array:
    """Positions of ids in a sorted array."""
    where = np.searchsorted(known, ids).clip(max=max(len(known) - 1, 0))
    if len(ids) and (not len(known) or (known[where] != ids).any()):
        wrong = np.setdiff1d(ids, known)[:5].tolist()
        raise ValueError(
            f"{what} ids {wrong} of the predictions or annotations are not in the "
            "annotation file: they belong to another one."
        )
    return where


def counted(truth: Truth, found: Predictions, rules: Rules) -> Array:
    """Which predictions count, before matching: (N,) bool.

    Among equal scores the earlier box stays, as in the official implementations.
    """
    found.check()
    pairs = truth.pair(found.images, found.categories)
    number = len(truth.categories)
    keep = np.ones(len(pairs), bool)
    for cap, key in (
        (rules.per_image, pairs // number),
        (rules.per_class, pairs % number),
        (rules.per_pair, pairs),
    ):
        if cap < ALL:
            keep &= _rank(key, found.scores) < cap
    if rules.federated:  # the official lvis drops boxes without an area
        keep &= np.isin(pairs, truth.verified()) & (found.boxes[:, 2:].prod(1) > 0)
    return keep


def _rank(key: Array, scores: Array) -> Array:
    """Place of each prediction among those of its key, best score first."""
    order = np.lexsort((-scores, key))
    rank = np.empty_like(order)
    rank[order] = _rank_in_order(key[order])
    return rank


def _rank_in_order(key: Array) -> Array:
    """0, 1, 2, ... within each stretch of equal keys, none of them below 0."""
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return np.arange(len(key)) - np.repeat(first, np.diff(first, append=len(key)))


def precision_table(truth: Truth, found: Predictions, rules: Rules) -> Array:
    """Precision at 10 IoUs (0.50 to 0.95) and 101 recalls.

    Returns:
        (10, 101, K) in the order of ``truth.categories``; -1 where a class has no
        object.
    """
    table = np.full((10, 101, len(truth.categories)), -1.0)
    for labels, run, _ in _runs(truth, found, rules):
        table[:, :, labels] = run.eval["precision"][:, :, :, 0, 0]
    return table


def outcomes(truth: Truth, found: Predictions, rules: Rules) -> Array:
    """What each prediction is at IoU 0.5.

    Returns:
        (N,) int8: 1 right, 0 wrong, -1 does not count (beyond a cap, class not
        verified in the image, on a crowd).
    """
    result = np.full(len(found.scores), -1, np.int8)
    for _, run, rows in _runs(truth, found, rules, iou=[0.5]):
        result[rows] = 0
        for key in run.eval["matched"]:
            box, annotation = map(int, key.split("_"))
            thing = run.cocoGt.anns[annotation]
            ignored = thing["ignore"] or thing["area"] > 1e10
            result[rows[box - 1]] = -1 if ignored else 1
    pairs = truth.pair(found.images, found.categories)
    if rules.federated:
        result[(result == 0) & np.isin(pairs, truth.unfinished)] = -1
    return result


def _runs(
    truth: Truth,
    found: Predictions,
    rules: Rules,
    iou: Sequence[float] | None = None,
) -> Iterator[tuple[Array, COCOeval_faster, Array]]:
    """Evaluate some classes at a time.

    Yields:
        the classes' indices, the finished evaluation, and which predictions it had,
        in the order of its ids.
    """
    number = len(truth.categories)
    rows = np.flatnonzero(counted(truth, found, rules))
    pairs = truth.pair(found.images[rows], found.categories[rows])
    order = np.lexsort((pairs, pairs % number))
    rows, pairs = rows[order], pairs[order]  # by class, then image, then as found
    labels = pairs % number
    known = truth.objects(rules.federated)
    truth_order = known[np.lexsort((truth.pairs[known], truth.pairs[known] % number))]
    truth_labels = truth.pairs[truth_order] % number
    objects = np.bincount(truth_labels, minlength=number)
    for start, stop in _chunks(np.bincount(labels, minlength=number), objects):
        mine = slice(*np.searchsorted(labels, (start, stop)))
        boxes = truth_order[slice(*np.searchsorted(truth_labels, (start, stop)))]
        part = found.take(rows[mine])
        run = _evaluate(truth, boxes, part, pairs[mine], range(start, stop), rules, iou)
        yield np.arange(start, stop), run, rows[mine]


def _chunks(boxes: Array, objects: Array) -> Iterator[tuple[int, int]]:
    """Ranges of classes with so few boxes and pairs that their evaluation is small."""
    start, total, widest = 0, 0, 0
    for label, (count, width) in enumerate(zip(boxes, boxes + objects)):
        total, widest = total + count, max(widest, width)
        number = label + 1 - start
        if number > 1 and (total > CHUNK_BOXES or widest * number > CHUNK_PAIRS):
            yield start, label
            start, total, widest = label, count, width
    yield start, len(boxes)


def _evaluate(
    truth: Truth,
    boxes: Array,
    part: Predictions,
    pairs: Array,
    labels: range,
    rules: Rules,
    iou: Sequence[float] | None,
) -> COCOeval_faster:
    """Run faster-coco-eval on some classes.

    Each class sees only images where it has a box, numbered anew in their order:
    the pairs of an image and a class that has none there are most of the work.
    """
    number = len(truth.categories)
    both = np.unique(np.concatenate([truth.pairs[boxes], pairs]))
    both = both[np.lexsort((both, both % number))]
    image_of = dict(zip(both.tolist(), (_rank_in_order(both % number) + 1).tolist()))
    open_classes: dict[int, list[int]] = {}
    for pair in both[np.isin(both, truth.unfinished)].tolist():
        open_classes.setdefault(image_of[pair], []).append(pair % number)
    images = [
        dict(
            id=i,
            neg_category_ids=labels,
            not_exhaustive_category_ids=open_classes.get(i, ()),
        )
        for i in range(1, max(image_of.values(), default=1) + 1)
    ]

    def index(pairs: Array, records: Iterable[dict[str, Any]]) -> COCO:
        """Boxes, each of an image and a class, with ids from 1."""
        content = COCO()
        content.dataset = dict(
            images=images,
            categories=[dict(id=i, name=str(i), frequency="f") for i in labels],
            annotations=[
                dict(r, id=n, image_id=image_of[pair], category_id=pair % number)
                for n, (pair, r) in enumerate(zip(pairs.tolist(), records), 1)
            ],
        )
        content.createIndex()
        return content

    known = (truth.boxes[i] for i in boxes)
    run = COCOeval_faster(
        index(truth.pairs[boxes], (_object(b, rules.federated) for b in known)),
        index(
            pairs,
            (
                dict(bbox=box, area=box[2] * box[3], score=score, iscrowd=0)
                for box, score in zip(part.boxes.tolist(), part.scores.tolist())
            ),
        ),
        "bbox",
        print_function=lambda *_: None,
        lvis_style=rules.federated,
    )
    # the caps are ours; the library reserves memory for as many as it is told
    run.params.maxDets = [int(np.unique(pairs, return_counts=True)[1].max(initial=1))]
    run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
    if iou is not None:
        run.params.iouThrs = np.array(iou)
    run.evaluate()
    run.accumulate()
    return run


def _object(box: Mapping[str, Any], federated: bool) -> dict[str, Any]:
    """An annotation: COCO ignores crowds, LVIS what is flagged ``ignore``.

    An area beyond all ranges is ignored too, and matched as any object, not as a crowd.
    """
    width, height = box["bbox"][2:]
    area = box.get("area", width * height)
    crowd = int(box.get("iscrowd", 0))
    if federated:
        area, crowd = 2e10 if box.get("ignore") else area, 0
    return dict(bbox=box["bbox"], area=area, iscrowd=crowd)


def average_precision(
    truth: Truth,
    found: Predictions,
    rules: Rules,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """The figures of :func:`summary`, and by LVIS's rules ``APr``, ``APc``, ``APf``."""
    table = precision_table(truth, found, rules)
    figures = summary(truth, table, groups or {})
    for kind in "rcf" if rules.federated else "":
        members = [frequency == kind for frequency in truth.frequency]
        figures[f"AP{kind}"] = mean_precision(table[:, :, members])
    return figures


def summary(
    truth: Truth, table: Array, groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Figures in [0, 1] from a precision table.

    Args:
        truth: what the table was made with.
        table: of :func:`precision_table`.
        groups: group name -> class names.

    Returns:
        ``AP`` (IoU 0.50 to 0.95), ``AP50``, ``AP75``; ``<group>_AP``,
        ``<group>_AP50``; NaN where a group has no object.
    """
    figures = {
        "AP": mean_precision(table),
        "AP50": mean_precision(table[0]),
        "AP75": mean_precision(table[5]),
    }
    index = {name: i for i, name in enumerate(truth.names)}
    for group, names in groups.items():
        part = table[:, :, [index[n] for n in names]]
        figures[f"{group}_AP"] = mean_precision(part)
        figures[f"{group}_AP50"] = mean_precision(part[0])
    return figures


def mean_precision(table: Array) -> float:
    """Mean over classes with objects; -1 marks the others."""
    valid = table[table > -1]
    return float(valid.mean()) if valid.size else float("nan")
