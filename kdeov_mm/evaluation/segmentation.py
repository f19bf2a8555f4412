"""Intersection over union of label maps, of seen and unseen classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.evaluation.metrics.semseg_metric import print_semantic_table
from mmdet.registry import METRICS
from mmengine.logging import MMLogger
from torch import Tensor

from ..datasets.segmentation import BACKGROUND, IGNORED
from .protocol_metric import ProtocolMetric


def count_pixels(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class: hit, predicted, true.

    Args:
        predicted: (H, W), in [0, K) or ``BACKGROUND``.
        truth: (H, W), also ``IGNORED``: those pixels do not count.
        num_classes: K.

    Returns:
        (3, K + 1) int64; background comes last.

    Raises:
        ValueError: the sizes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"a prediction of {tuple(predicted.shape)} pixels for a label map of "
            f"{tuple(truth.shape)}: predictions have the size of the original, so a "
            "test pipeline loads labels after Resize."
        )
    known = truth != IGNORED
    # background as the last class
    maps = [m[known].long() for m in (predicted, truth)]
    maps = [m.masked_fill(m == BACKGROUND, num_classes) for m in maps]
    hit = maps[1][maps[0] == maps[1]]
    # whole numbers: float32, mmdet's, is not exact beyond 16.7 million pixels
    return torch.stack([m.bincount(minlength=num_classes + 1) for m in (hit, *maps)])


def segmentation_scores(
    counts: Tensor, classes: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Scores of summed counts.

    A class that is neither there nor predicted has none, and is left out of the means.
    Background counts in ``aAcc``, and by its predictions in the others' union; it is
    no class, but for ``mIoU_with_background`` (as VOC's 21 classes).

    Args:
        counts: (3, K + 1), the sum of :func:`count_pixels`.
        classes: K names.
        groups: name -> classes.

    Returns:
        ``mIoU``, ``mAcc`` (the mean of the classes' recalls), ``aAcc`` (of all
        pixels), ``mIoU_<group>``, and with groups ``base`` and ``novel`` ``hIoU``,
        their harmonic mean, all in [0, 1]; IoU (K,); recall (K,).
    """
    hit, predicted, true = counts.double()
    iou, recall = hit / (predicted + true - hit), hit / true
    metrics = dict(
        mIoU=iou[:-1].nanmean().item(),
        mAcc=recall[:-1].nanmean().item(),
        aAcc=(hit.sum() / true.sum()).item(),
        IoU_background=iou[-1].item(),
        mIoU_with_background=iou.nanmean().item(),
    )
    index = {name: i for i, name in enumerate(classes)}
    for group, names in groups.items():
        members = iou[[index[name] for name in names]]
        metrics[f"mIoU_{group}"] = members.nanmean().item()
    if {"base", "novel"} <= {*groups}:
        seen, unseen = metrics["mIoU_base"], metrics["mIoU_novel"]
        total = seen + unseen
        metrics["hIoU"] = 2 * seen * unseen / total if total else 0.0
    return metrics, iou[:-1], recall[:-1]


@METRICS.register_module()
class SegMetric(ProtocolMetric):
    """mIoU of label maps: of all classes, of seen and unseen ones.

    Args:
        protocol: see :class:`ProtocolMetric`.
        classwise: print a table of all classes; the file of ``out_file`` has it too.
        kwargs: those of :class:`ProtocolMetric`.
    """

    default_prefix = "seg"

    def __init__(self, protocol: str, classwise: bool = False, **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.classwise = classwise

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of each image."""
        for sample in data_samples:
            predicted = sample["pred_sem_seg"]["sem_seg"][0]
            truth = sample["gt_sem_seg"]["sem_seg"][0].to(predicted.device)
            counts = count_pixels(predicted, truth, len(self.class_names))
            self.results.append((sample["img_id"], counts.cpu()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The metrics of :func:`segmentation_scores`."""
        results = self.unique(results)
        counts = torch.stack([counts for _, counts in results]).sum(0)
        names = self.class_names
        metrics, iou, recall = segmentation_scores(counts, names, self.groups)
        size = f"{len(results)} images, {len(names)} classes"
        rows = zip(names, iou.tolist(), recall.tolist())
        per_class = {name: dict(IoU=i, Acc=a) for name, i, a in rows}
        self.report(self.section(size, metrics), metrics=metrics, classes=per_class)
        if self.classwise:
            table = dict(IoU=iou.numpy(), Acc=recall.numpy())
            print_semantic_table(table, [*names], MMLogger.get_current_instance())
        return metrics
