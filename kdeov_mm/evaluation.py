"""Open-vocabulary detection figures, each with its protocol's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import load
from mmengine.logging import MMLogger
from torch import Tensor

GROUP_SUFFIX = "_classes"


def coco_average_precision(
    annotations: dict[str, Any],
    predictions: Sequence[dict[str, Any]],
    groups: Mapping[str, Sequence[str]],
    max_dets: int = 100,
) -> dict[str, float]:
    """COCO box AP over all classes and over groups of classes.

    Args:
        annotations: a COCO-format dictionary.
        predictions: COCO-format results: ``image_id``, ``category_id``,
            ``bbox`` (xywh, pixels), ``score``.
        groups: group name -> class names, all of them categories.
        max_dets: boxes per class and image that count (COCO's rule).

    Returns:
        ``AP`` (IoU 0.50 to 0.95), ``AP50``, ``AP75``, and ``<group>_AP``,
        ``<group>_AP50``, in [0, 1]; NaN where a group has no object.
    """
    ids = {c["name"]: c["id"] for c in annotations["categories"]}
    order = {cat_id: i for i, cat_id in enumerate(sorted(ids.values()))}
    # the matcher reads annotation id 0 as "not matched", so ids begin at 1
    boxes = [{**a, "id": i} for i, a in enumerate(annotations["annotations"], 1)]
    truth = COCO({**annotations, "annotations": boxes})
    if predictions:
        evaluation = COCOeval_faster(
            truth,
            truth.loadRes(list(predictions)),
            "bbox",
            print_function=lambda *_: None,
        )
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        # (IoU, recall, class, area, max_dets): all areas, all boxes
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
    else:  # nothing found: 0 for every class that has an object
        present = {
            a["category_id"]
            for a in annotations["annotations"]
            if not a.get("iscrowd", 0)
        }
        precision = np.full((10, 101, len(order)), -1.0)
        precision[:, :, [order[i] for i in present]] = 0
    result = {
        "AP": _mean(precision),
        "AP50": _mean(precision[0]),
        "AP75": _mean(precision[5]),
    }
    for group, names in groups.items():
        part = precision[:, :, [order[ids[name]] for name in names]]
        result[f"{group}_AP"] = _mean(part)
        result[f"{group}_AP50"] = _mean(part[0])
    return result


def _mean(precision: np.ndarray) -> float:
    """Mean over classes with objects; -1 marks the others."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")


@METRICS.register_module()
class OpenVocabularyMetric(BaseMetric):
    """COCO AP, also per group of classes (base, novel, ...).

    Groups are the data set's metainfo entries ``<group>_classes``. All words
    of the data set compete in every image (the generalised setting). Labels
    and categories are matched by name.

    Args:
        ann_file: COCO-format annotation file.
        protocol: what to call the figures, printed with them.
        max_dets: boxes per class and image that count (COCO's rule).
        collect_device: mmengine's.
        prefix: mmengine's.
    """

    default_prefix = "ov"

    def __init__(
        self,
        ann_file: str,
        protocol: str,
        max_dets: int = 100,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.annotations = load(ann_file)
        self.protocol = protocol
        self.max_dets = max_dets

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the boxes of a batch."""
        for sample in data_samples:
            found = sample["pred_instances"]
            self.results.append(
                (
                    sample["img_id"],
                    *(_numpy(found[key]) for key in ("bboxes", "scores", "labels")),
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Figures in [0, 1], also logged with the protocol's name.

        Raises:
            ValueError: a class of the data set is not in the file.
        """
        meta = self.dataset_meta or {}
        ids = {c["name"]: c["id"] for c in self.annotations["categories"]}
        unknown = [name for name in meta["classes"] if name not in ids]
        if unknown:
            raise ValueError(
                f"{len(unknown)} classes of the data set are not "
                f"in the annotation file, e.g. {unknown[:5]}"
            )
        label_to_id = [ids[name] for name in meta["classes"]]
        predictions = [
            dict(
                image_id=image,
                category_id=label_to_id[label],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=score,
            )
            for image, boxes, scores, labels in results
            for (x1, y1, x2, y2), score, label in zip(
                boxes.tolist(), scores.tolist(), labels.tolist()
            )
        ]
        groups = {
            key.removesuffix(GROUP_SUFFIX): names
            for key, names in meta.items()
            if key.endswith(GROUP_SUFFIX)
        }
        figures = coco_average_precision(
            self._asked(set(label_to_id)), predictions, groups, self.max_dets
        )
        MMLogger.get_current_instance().info(
            "\n".join(
                [
                    f"Protocol: {self.protocol} ({len(results)} images, "
                    f"{len(label_to_id)} words, {self.max_dets} boxes per word and "
                    "image)",
                    *(f"  {name:<12} {value:.4f}" for name, value in figures.items()),
                ]
            )
        )
        return figures

    def _asked(self, cat_ids: set[int]) -> dict[str, Any]:
        """The annotations without the categories that are not asked for."""
        return {
            "images": self.annotations["images"],
            "categories": [
                c for c in self.annotations["categories"] if c["id"] in cat_ids
            ],
            "annotations": [
                a
                for a in self.annotations["annotations"]
                if a["category_id"] in cat_ids
            ],
        }


def newest_figures(folder: Path) -> dict[str, float]:
    """The figures that the latest run of ``tools/test.py`` wrote below a folder.

    Raises:
        FileNotFoundError: it wrote none.
    """
    files = list(folder.glob("*/*.json"))
    if not files:
        raise FileNotFoundError(f"tools/test.py wrote no figures below {folder}")
    return load(max(files, key=lambda f: f.stat().st_mtime))


def _numpy(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
