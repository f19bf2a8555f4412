"""mmengine's metric of boxes: average precision, and what a score is worth."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.fileio import get
from mmengine.logging import print_log
from torch import Tensor

from ..datasets.annotations import AnnotationError, AnnotationFile, collected_later
from .average_precision import (
    ALL,
    RULES,
    GroundTruth,
    Predictions,
    Rules,
    average_precision,
    class_metrics,
    precision_table,
)
from .protocol_metric import ProtocolMetric
from .reliability import reliability


@METRICS.register_module()
class OpenVocabularyMetric(ProtocolMetric):
    """AP by COCO's and LVIS's rules, of all words and of groups of them.

    Groups are the data set's metainfo entries ``<group>_classes`` whose classes are
    all asked. All words of the data set compete in every image (the generalised
    setting). Labels and categories are matched by name. Metrics of the first rules
    have plain keys, ``AP`` and ``novel_AP50``; those of others begin with the rules'
    name, ``lvis-fixed_AP``. LVIS's rules add ``APr``, ``APc`` and ``APf``. The report
    has the model's own cap beside the rules, as its samples say it: ``max_per_img``,
    boxes per image, -1 or None for no cap.

    The file is checked as the data sets check it, and the same objects count; one
    without annotations, a test server's, gives no metrics. Metrics of each class, by
    the first rules, are in ``out_file``, and in the log where ``classwise`` is set.

    Args:
        ann_file: COCO- or LVIS-format annotation file.
        protocol: data and vocabulary in words, printed with the metrics.
        rules: one or several of ``'coco'``, ``'lvis'`` and ``'lvis-fixed'``.
        classwise: log a table of the metrics of each class.
        reliability: also false positives where a class is verified to be absent, and
            calibration, by the first rules; needs as much time again.
        kwargs: those of :class:`ProtocolMetric`.
    """

    default_prefix = "ov"

    def __init__(
        self,
        ann_file: str,
        protocol: str,
        rules: str | Sequence[str] = ("coco",),
        classwise: bool = False,
        reliability: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(protocol, **kwargs)
        rules = (rules,) if isinstance(rules, str) else tuple(rules)
        if not rules or set(rules) - {*RULES}:
            raise ValueError(f"rules are some of {[*RULES]}, got {rules}")
        # the same check as the data sets', so that both count the same objects
        with collected_later():
            self.file = AnnotationFile(get(ann_file), ann_file, outlines=False)
            if not self.file.unsized:
                self.file.check_boxes()
        if not self.file.labelled:
            print_log(
                f"{ann_file} has no 'annotations': predictions are made, and no "
                "figures of them.",
                "current",
                logging.WARNING,
            )
        self.rules = rules
        self.classwise = classwise
        self.reliability = reliability

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the boxes of a batch."""
        for sample in data_samples:
            boxes = sample["pred_instances"]
            # 24 bytes for a box, and no views, which would keep what they are of
            kinds = dict(bboxes=np.float32, scores=np.float32, labels=np.int32)
            arrays = (_numpy(boxes[key]).astype(kinds[key]) for key in kinds)
            cap = sample.get("max_per_img", "not known")
            cap = None if cap == -1 else cap
            size = tuple(sample.get("ori_shape", ()))[1::-1]
            self.results.append((sample["img_id"], *arrays, cap, size))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics in [0, 1], also logged with the protocol's name.

        Raises:
            ValueError: a class of the data set is not in the file, or an image that
                was tested is not.
        """
        # annotations of the classes that were asked; results of an image once
        names, groups = self.class_names, self.groups
        given, results = results, self.unique(results)
        if not self.file.labelled:
            return {}
        ground_truth = self._ground_truth(results)
        predictions = _predictions(results, ground_truth, names)
        for kind in "rcf":  # LVIS's rules have metrics of their own for them
            groups.pop(kind, None)
        # metrics by each of the rules; those of the first have plain keys
        images, most = len(results), max(len(r[2]) for r in results)
        size = f"{images} images, {len(names)} words"
        cap = results[0][4]  # a model's is the same for all images
        # all boxes are in the arrays now; nobody needs them a second time
        for kept in (given, results, self.results):
            kept.clear()
        lines: list[str] = []
        metrics: dict[str, float] = {}
        by_rules = {}
        by_class: dict[str, dict[str, float]] = {}  # by the first rules
        for rule in self.rules:
            table = precision_table(ground_truth, predictions, RULES[rule])
            by_class = by_class or class_metrics(ground_truth, table)
            values = average_precision(
                ground_truth, predictions, RULES[rule], groups, table
            )
            by_rules[RULES[rule].name] = values
            rules = f"{RULES[rule].name}, {_describe_cap(cap, RULES[rule])}"
            lines += self.section(size, values, rules)
            lead = "" if rule == self.rules[0] else f"{rule}_"
            metrics.update({lead + key: value for key, value in values.items()})
        number = len(predictions.scores)
        lines += [f"The model gave {number} boxes, at most {most} of an image."]
        content: dict[str, Any] = dict(
            images=images, words=len(names), boxes=number, max_per_img=cap
        )
        content.update(max_boxes_of_an_image=most, metrics=by_rules, classes=by_class)
        if self.classwise:
            lines += _class_table(by_class)
        # false positives and calibration, by the first rules
        if self.reliability:
            groups = {"all": tuple(ground_truth.names), **groups}
            first = RULES[self.rules[0]]
            by_group = reliability(ground_truth, predictions, first, groups)
            for group, values in by_group.items():
                lines += _describe(group, values)
                metrics.update(_flat(group, values))
            content["reliability"] = by_group
        self.report(lines, **content)
        return metrics

    def _ground_truth(self, results: list) -> GroundTruth:
        """Annotations of the classes that were asked; warns of images not tested."""
        # the images as they were loaded; of predictions alone, those beside the file
        sizes = {result[0]: result[5] for result in results if result[5]}
        for image in () if self.file.unsized else self.file.content["images"]:
            said, size = (image["width"], image["height"]), sizes.get(image["id"])
            if size and size != said:
                raise AnnotationError(
                    f"{self.file.path} says that image {image['id']} has "
                    f"{said[0]} x {said[1]} pixels, it was loaded with {size[0]} x "
                    f"{size[1]}: its boxes would lie beside the objects."
                )
        if not sizes and not self.file.unsized:
            folder = Path(self.file.path).parent / "images"
            self.file.look_at_images(lambda i: folder / str(i.get("file_name")), 100)
        # sizes that the file does not say
        self.file.fill_sizes(lambda image: sizes.get(image["id"], (10**9, 10**9)))
        self.file.check_boxes()
        ground_truth = GroundTruth(self.file.content, self.class_names)
        if len(results) != len(ground_truth.images):
            print_log(
                f"{len(results)} images were tested, the annotation file has "
                f"{len(ground_truth.images)}: what is in the others counts as missed.",
                "current",
                level=logging.WARNING,
            )
        return ground_truth


def _predictions(
    results: list, ground_truth: GroundTruth, names: Sequence[str]
) -> Predictions:
    """All boxes; labels as category ids, by name."""
    # lists of N_b boxes per image -> all N
    images, boxes, scores, labels, *_ = zip(*results)
    index = np.concatenate(labels)  # (N,) into names
    if len(index) and not 0 <= index.min() <= index.max() < len(names):
        raise ValueError(
            f"labels from {index.min()} to {index.max()} for {len(names)} words: "
            "the model was asked for other words than the data set has"
        )
    # a label is the index of a word, a category id is the file's
    ids = dict(zip(ground_truth.names, ground_truth.categories.tolist()))
    return Predictions(
        np.repeat(_few_bytes(images), [len(s) for s in scores]),
        _few_bytes([ids[name] for name in names])[index],
        np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        np.concatenate(scores),
        corners=True,
    )


def _few_bytes(ids: Sequence[int]) -> np.ndarray:
    """Ids in the smallest signed integers that hold them all."""
    largest = max(map(abs, ids), default=0)
    return np.array(ids, np.min_scalar_type(-int(largest) - 1))


def _class_table(classes: dict[str, dict[str, float]]) -> list[str]:
    """Metrics of each class as lines, those of most objects first."""
    width = max(map(len, classes))
    lines = [f"  {'class':<{width}} objects     AP   AP50"]
    for name, row in sorted(classes.items(), key=lambda item: -item[1]["objects"]):
        figures = f"{row['AP']:6.4f} {row['AP50']:6.4f}"
        lines.append(f"  {name:<{width}} {row['objects']:>7} {figures}")
    return lines


def _describe_cap(cap: int | str | None, rules: Rules) -> str:
    """The model's cap of boxes per image in words, and whether the rules count more."""
    if not isinstance(cap, int):
        return "no cap per image" if cap is None else f"cap per image {cap}"
    text = f"at most {cap} boxes per image (the model's cap"
    if cap >= rules.needed:
        return f"{text})"
    counted = "have none" if rules.needed == ALL else f"count {rules.needed}"
    return f"{text}; the rules {counted})"


def _describe(group: str, values: dict[str, Any]) -> list[str]:
    """The reliability of a group as lines for the log."""
    objects, questions = values["objects"], values["questions"]
    pairs = f"{questions} pairs of an image and a class verified absent"
    lines = [f"Reliability of {group}: {objects} objects, {pairs}"]
    # what a threshold costs on images without the class
    for recall, at in values["at_recall"].items():
        if at["per_image"] is None:
            lines.append(f"  recall {recall} is not reached")
        else:
            rate = f"{at['per_image']:.4f} false positives per image"
            where = f"recall {recall} (score {at['threshold']:.3f})"
            lines.append(f"  {rate} without the asked class, at {where}")
    # what a score promises
    curve = values["calibration"]
    right = "none" if curve["at_0.7"] is None else f"{curve['at_0.7']:.3f}"
    error = "none" if curve["ece"] is None else f"{curve['ece']:.4f}"
    boxes = f"of the {curve['boxes_at_0.7']} boxes scored 0.65 to 0.75"
    end = f"are right: {right}; expected calibration error: {error}"
    return [*lines, f"  {boxes} {end}"]


def _flat(group: str, values: dict[str, Any]) -> dict[str, float]:
    """The metrics of a group's reliability that are single numbers; NaN for None."""
    curve, at = values["calibration"], values["at_recall"]
    flat = {f"FPPI@R{recall}": at[recall]["per_image"] for recall in at}
    flat.update({"ECE": curve["ece"], "right@0.7": curve["at_0.7"]})
    return {f"{group}_{k}": float("nan") if v is None else v for k, v in flat.items()}


def _numpy(values: Any) -> np.ndarray:
    # numpy has no bfloat16
    if isinstance(values, Tensor) and values.is_floating_point():
        values = values.float()
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values)
