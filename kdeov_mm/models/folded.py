"""A detector whose words are fixed: what a closed-set one costs."""

import copy
from collections.abc import Sequence
from typing import Any

from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import SampleList
from torch import Tensor, nn

from ..vocabulary import Words
from .ov_head import OVHead
from .scoring import PromisingPlaces


class FoldedDetector(SingleStageDetector):
    """backbone -> neck -> [fixed fusion] -> YOLOv8's head, whose last layers are words.

    Made by :meth:`KDEOVDetector.fold`; it shares nothing with the detector it came from
    but the data preprocessor. It knows its words: samples need not bring any.

    Args:
        backbone, neck, data_preprocessor: the detector's.
        fusion: L maps -> L maps, for the fixed words; None for none.
        bbox_head: a head with a :class:`FoldedHeadModule`.
        words: the K classes.
        fuse: fold BatchNorms into the convolutions before them.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        data_preprocessor: nn.Module,
        fusion: nn.Module | None,
        bbox_head: OVHead,
        words: Sequence[Words],
        fuse: bool,
    ) -> None:
        BaseDetector.__init__(self, data_preprocessor)
        self.backbone = copy.deepcopy(backbone)
        self.neck = copy.deepcopy(neck)
        self.fusion = fusion
        self.bbox_head = bbox_head
        self.words = tuple(words)
        self.requires_grad_(False).eval()
        if fuse:
            fuse_conv_bn(self)
        self.to(next(backbone.parameters()).device)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> P3, P4, P5 as the head takes them."""
        feats = super().extract_feat(batch_inputs)
        return feats if self.fusion is None else self.fusion(feats)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with boxes, scores and names.

        Raises:
            ValueError: samples that ask for other words.
        """
        for sample in batch_data_samples:
            if tuple(sample.metainfo.get("text", self.words)) != self.words:
                raise ValueError(
                    f"this detector was folded for {len(self.words)} words, "
                    f"{self.words[:3]} ..., and the samples ask for others: leave "
                    "their `text` out, or fold these."
                )
        samples = super().predict(batch_inputs, batch_data_samples, rescale)
        name_labels([sample.pred_instances for sample in samples], self.words)
        return samples


def name_labels(results: Sequence, words: Sequence[Words]) -> None:
    """Put ``label_names``, the first word of each class, on instances."""
    names = [word if isinstance(word, str) else word[0] for word in words]
    for result in results:
        result.label_names = [names[i] for i in result.labels.tolist()]


def fold_head(
    head: OVHead, text: Tensor, owner: Tensor | None, places: int | None
) -> OVHead:
    """A copy of the head for words (W, D); see :meth:`KDEOVDetector.fold`."""
    folded = copy.deepcopy(head).eval()
    folded.head_module = module = folded.head_module.fold(text, owner)
    if places is not None:
        folded.places = PromisingPlaces(module.layers, places)
    return folded


def fuse_before_words(detector: SingleStageDetector) -> Any:
    """Fold BatchNorms into convolutions, in place; the projections stay as they are."""
    module = detector.bbox_head.head_module
    for part in (detector.backbone, detector.neck, module.reg_preds):
        fuse_conv_bn(part)
    for branch in module.cls_preds:
        fuse_conv_bn(branch[:-1])
    return detector
