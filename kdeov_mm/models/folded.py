"""A detector whose words are fixed: what a closed-set one costs."""

import copy
import weakref
from collections.abc import Sequence
from typing import Any

from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import SampleList
from torch import Tensor, nn

from ..vocabulary import Words
from .postprocess import PromisingPlaces


class FoldedDetector(SingleStageDetector):
    """backbone -> neck -> [fixed fusion] -> YOLOv8's head, whose last layers are words.

    Made by :meth:`KDEOVDetector.fold`; it shares nothing with the detector it came from
    but the data preprocessor. It knows its words: samples need not bring any.

    Args:
        detector: the detector it is made of.
        fuse: fold BatchNorms into the convolutions before them.
    """

    def __init__(self, detector: SingleStageDetector, fuse: bool) -> None:
        BaseDetector.__init__(self, detector.data_preprocessor)
        self.source = weakref.ref(detector)
        self.cfg = getattr(detector, "cfg", None)
        self.global_head = None
        self.words: tuple[Words, ...] = ()
        self.fuse = fuse
        self.backbone = copy.deepcopy(detector.backbone)
        self.neck = copy.deepcopy(detector.neck)
        self.fusion: nn.Module | None = None
        self.bbox_head = copy.deepcopy(detector.bbox_head)
        self.bbox_head.head_module = detector.bbox_head.head_module.folded_module()
        self.eval()
        if fuse:
            fuse_conv_bn(self)
        self.requires_grad_(False)
        self.to(next(detector.parameters()).device)

    def set_words(
        self,
        words: Sequence[Words],
        ends: Sequence[nn.Sequential],
        owner: Tensor | None,
        fusion: nn.Module | None,
        places: int | None,
    ) -> None:
        """Put words where others were: all but the last layers stays.

        Args:
            words: the K classes.
            ends: of :meth:`OVHeadModule.ends`.
            owner: (W,) the class of each word; None: every class has one.
            fusion: L maps -> L maps, for these words; None for none.
            places: see :meth:`KDEOVDetector.fold`.
        """
        head = self.bbox_head
        for end in ends:
            end.eval()
            if self.fuse:
                fuse_conv_bn(end)
            end.requires_grad_(False)
        head.head_module.set_words(ends, owner)
        layers = head.head_module.layers
        head.places = None if places is None else PromisingPlaces(layers, places)
        self.fusion = None if fusion is None else fusion.requires_grad_(False).eval()
        self.words = tuple(words)

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


def fuse_before_words(detector: SingleStageDetector) -> Any:
    """Fold BatchNorms into convolutions, in place; the projections stay as they are."""
    module = detector.bbox_head.head_module
    for part in (detector.backbone, detector.neck, module.reg_preds):
        fuse_conv_bn(part)
    for branch in module.cls_preds:
        fuse_conv_bn(branch[:-1])
    return detector
