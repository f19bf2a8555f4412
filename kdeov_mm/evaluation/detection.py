"""mmengine's metric: keeps the boxes of a run and prints the figures."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import load
from mmengine.logging import MMLogger, print_log
from torch import Tensor

from ..vocabulary import asked_groups
from .average_precision import RULES, Predictions, Truth, average_precision
from .reliability import reliability


@METRICS.register_module()
class OpenVocabularyMetric(BaseMetric):
    """AP by COCO's and LVIS's rules, of all words and of groups of them.

    Groups are the data set's metainfo entries ``<group>_classes`` whose classes are
    all asked. All words of the data set compete in every image (the generalised
    setting). Labels and categories are matched by name. Figures of the first rules
    have plain keys, ``AP`` and ``novel_AP50``; those of others begin with the rules'
    name, ``lvis-fixed_AP``. LVIS's rules add ``APr``, ``APc`` and ``APf``.

    Args:
        ann_file: COCO- or LVIS-format annotation file.
        protocol: data and vocabulary in words, printed with the figures: "OV-COCO
            48/17, val2017, 65 words".
        rules: one or several of ``'coco'``, ``'lvis'`` and ``'lvis-fixed'``.
        reliability: also false positives where a class is verified to be absent, and
            calibration, by the first rules; needs as much time again.
        out_file: JSON of all figures, with their protocols.
        collect_device: mmengine's.
        prefix: mmengine's.
    """

    default_prefix = "ov"

    def __init__(
        self,
        ann_file: str,
        protocol: str,
        rules: Sequence[str] = ("coco",),
        reliability: bool = False,
        out_file: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        rules = (rules,) if isinstance(rules, str) else tuple(rules)
        if not rules or set(rules) - {*RULES}:
            raise ValueError(f"rules are some of {[*RULES]}, got {rules}")
        self.annotations = load(ann_file)
        self.protocol = protocol
        self.rules = rules
        self.reliability = reliability
        self.out_file = out_file

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
            ValueError: a class of the data set is not in the file, or an image that
                was tested is not.
        """
        meta = self.dataset_meta or {}
        names = tuple(meta["classes"])
        truth = Truth(self.annotations, names)
        results = [*{result[0]: result for result in results}.values()]
        if len(results) != len(truth.images):
            print_log(
                f"{len(results)} images were tested, the annotation file has "
                f"{len(truth.images)}: what is in the others counts as missed.",
                "current",
                level=logging.WARNING,
            )
        found = self._predictions(results, truth, names)
        groups = asked_groups(meta)
        for kind in "rcf":  # LVIS's rules have figures of their own for them
            groups.pop(kind, None)
        report: dict[str, Any] = dict(
            protocol=self.protocol,
            images=len(results),
            words=len(names),
            boxes=len(found.scores),
            most_boxes_of_an_image=max((len(r[2]) for r in results), default=0),
            figures={},
        )
        figures: dict[str, float] = {}
        for rule in self.rules:
            values = average_precision(truth, found, RULES[rule], groups)
            report["figures"][RULES[rule].name] = values
            lead = "" if rule == self.rules[0] else f"{rule}_"
            figures.update({lead + key: value for key, value in values.items()})
        if self.reliability:
            every = {"all": truth.names, **groups}
            first = RULES[self.rules[0]]
            report["reliability"] = reliability(truth, found, first, every)
            figures.update(_flat(report["reliability"]))
        MMLogger.get_current_instance().info(describe(report))
        if self.out_file:
            Path(self.out_file).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_no_nan(report), indent=1, allow_nan=False)
            Path(self.out_file).write_text(text + "\n")
        return figures

    def _predictions(
        self, results: list, truth: Truth, names: Sequence[str]
    ) -> Predictions:
        """Boxes as xywh, labels as category ids, by name."""
        ids = dict(zip(truth.names, truth.categories.tolist()))
        category = np.array([ids[name] for name in names], np.int64)
        counts = [len(r[2]) for r in results]
        boxes = np.concatenate([np.zeros((0, 4)), *(r[1] for r in results)])
        boxes[:, 2:] -= boxes[:, :2]
        labels = np.concatenate([np.zeros(0), *(r[3] for r in results)]).astype(int)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError(
                f"labels from {labels.min()} to {labels.max()} for {len(names)} words: "
                "the model was asked for other words than the data set has"
            )
        return Predictions(
            np.repeat(np.array([r[0] for r in results], np.int64), counts),
            category[labels],
            boxes,
            np.concatenate([np.zeros(0), *(r[2] for r in results)]),
        )


def describe(report: dict[str, Any]) -> str:
    """The report as lines for the log."""
    lines = []
    head = f"{report['protocol']} ({report['images']} images, {report['words']} words"
    for name, values in report["figures"].items():
        lines.append(f"Protocol: {head}), {name}")
        lines += [f"  {key:<16} {value:.4f}" for key, value in values.items()]
    cap = report["most_boxes_of_an_image"]
    lines.append(f"The model gave {report['boxes']} boxes, at most {cap} of an image.")
    for group, values in report.get("reliability", {}).items():
        lines.append(
            f"Reliability of {group}: {values['objects']} objects, "
            f"{values['questions']} pairs of an image and a class verified absent"
        )
        for recall, at in values["at_recall"].items():
            if at["per_image"] is None:
                lines.append(f"  recall {recall} is not reached")
            else:
                lines.append(
                    f"  {at['per_image']:.4f} false positives per image without the "
                    f"asked class, at recall {recall} (score {at['threshold']:.3f})"
                )
        curve = values["calibration"]
        right = "none" if curve["at_0.7"] is None else f"{curve['at_0.7']:.3f}"
        error = "none" if curve["ece"] is None else f"{curve['ece']:.4f}"
        lines.append(
            f"  of the {curve['boxes_at_0.7']} boxes scored 0.65 to 0.75 are right: "
            f"{right}; expected calibration error: {error}"
        )
    return "\n".join(lines)


def _no_nan(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _no_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_no_nan(v) for v in value]
    return None if value != value else value


def _flat(groups: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures of the reliability that are single numbers."""
    nan = float("nan")
    flat = {}
    for group, values in groups.items():
        for recall, at in values["at_recall"].items():
            per_image = at["per_image"]
            flat[f"{group}_FPPI@R{recall}"] = nan if per_image is None else per_image
        curve = values["calibration"]
        flat[f"{group}_ECE"] = nan if curve["ece"] is None else curve["ece"]
        flat[f"{group}_right@0.7"] = nan if curve["at_0.7"] is None else curve["at_0.7"]
    return flat


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
    if isinstance(values, Tensor):
        values = values.float() if values.is_floating_point() else values
        values = values.cpu().numpy()
    return np.asarray(values)
