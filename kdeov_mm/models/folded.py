"""A detector whose words are fixed: it costs what a closed-set one costs."""

import copy
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.detectors.base import BaseDetector
from mmdet.models.utils import multi_apply
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..vocabulary import Words
from .box_branches import BoxBranches
from .folding import FoldedLevel
from .pixels import as_if_alone, as_weights
from .postprocess import CandidateLocations, SplitOutput, describe
from .static import StaticForm
from .student import BoxQuery
from .text_classifier import Linear1x1


class FoldedHeadModule(BoxBranches):
    """A closed-set YOLOv8's branches, whose last layers are the words.

    Its state has the layout of ``mmyolo.YOLOv8HeadModule`` with K classes, where
    projection and words fold into one convolution (BatchNorm, no L2 norm).

    Args:
        head: the :class:`OVHeadModule` whose words are fixed.
    """

    def __init__(self, head: Any) -> None:
        super().__init__(
            num_classes=1,  # the class branch would be as wide as there are classes
            in_channels=head.in_channels,
            num_base_priors=head.num_base_priors,
            featmap_strides=head.featmap_strides,
            reg_max=head.reg_max,
            norm_cfg=head.norm_cfg,
            act_cfg=head.act_cfg,
        )
        # the branches without their last layers, which are the words
        self.cls_preds: Any = copy.deepcopy(
            nn.ModuleList(b[:-1] for b in head.cls_preds)
        )
        self.reg_preds = head.folded_boxes()
        self.depth = len(head.cls_preds[0]) - 1  # layers before the words
        self.to(head.classifier.logit_scale.dtype).eval()

    def set_words(self, layers: Sequence[nn.Sequential], owner: Tensor | None) -> None:
        """Replace the words.

        Args:
            layers: of :meth:`OVHeadModule.final_layers`.
            owner: (W,) the class of each word; None: every class has one.
        """
        self.register_buffer("owner", owner, persistent=owner is not None)
        for i, (branch, end) in enumerate(zip(self.cls_preds, layers)):
            self.cls_preds[i] = nn.Sequential(*branch[: self.depth], *end)
        # the class branch gives one map for each word, the head one for each class
        words = len(self.cls_preds[0][-1].bias)
        self.num_classes: int = words if owner is None else int(owner[-1]) + 1

    @property
    def layers(self) -> list[Linear1x1]:
        """For each level the words as a 1x1 convolution, (W, C) and (W,).

        C are the channels of the features or, where these fold for each image alone,
        the dimensions of the teacher's space.
        """
        ends = [branch[-1] for branch in self.cls_preds]
        return [Linear1x1(end.weight[..., 0, 0], end.bias) for end in ends]

    def _split(self, hidden: list[Tensor]) -> tuple[list[Tensor], list[Linear1x1]]:
        """What is multiplied at each level, and the last products."""
        ends = [branch[self.depth :] for branch in self.cls_preds]
        # maps that depend on the image, or convolutions
        if isinstance(ends[0][-1], FoldedLevel):
            levels = [end[-1].split(feats) for end, feats in zip(ends, hidden)]
            return [scaled for scaled, _ in levels], [layer for _, layer in levels]
        return [end[:-1](feats) for end, feats in zip(ends, hidden)], self.layers

    def split_last(self, feats: Sequence[Tensor]) -> SplitOutput:
        """As :meth:`OVHeadModule.split_last`, from feature maps alone."""
        # YOLOv8's forward, up to what depends on the words
        trunks = [branch[: self.depth] for branch in self.cls_preds]
        hidden, *boxes = multi_apply(self.forward_single, feats, trunks, self.reg_preds)
        return SplitOutput(*self._split(hidden), self.owner, boxes)

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Feature maps -> logits (B, K, H_l, W_l) and box sides, for each level."""
        output = self.split_last(feats)
        return output.logits(self.num_classes), *output.boxes


class FoldedDetector(SingleStageDetector):
    """backbone -> neck -> [fixed fusion] -> YOLOv8's head, whose last layers are words.

    Made by :meth:`KDEOVDetector.fold`; it shares only the data preprocessor with the
    detector it came from. It knows its words: samples need not bring any.

    Args:
        detector: the detector it is made of.
        fuse: fold BatchNorms into the convolutions before them.
    """

    global_head = None

    def __init__(self, detector: Any, fuse: bool) -> None:
        BaseDetector.__init__(self, detector.data_preprocessor)
        # not owned: the detector may go while its folded copy stays
        self.source = weakref.ref(detector)
        self.cfg = detector.cfg
        self.words: tuple[Words, ...] = ()
        self.fuse = fuse
        self.backbone = copy.deepcopy(detector.backbone)
        self.neck = copy.deepcopy(detector.neck)
        self.static: StaticForm | None = StaticForm()
        self.fusion: nn.Module | None = None
        self.candidates: CandidateLocations | None = None
        self.bbox_head = copy.deepcopy(detector.bbox_head)
        self.bbox_head.head_module = FoldedHeadModule(detector.bbox_head.head_module)
        self.eval()
        if fuse:
            fuse_conv_bn(self)
        self.requires_grad_(False)
        self.to(next(detector.parameters()).device)

    @property
    def box_cfg(self) -> Any:
        """The part of ``test_cfg`` that says which boxes are kept."""
        return self.bbox_head.test_cfg

    def set_words(
        self,
        words: Sequence[Words],
        layers: Sequence[nn.Sequential],
        owner: Tensor | None,
        fusion: nn.Module | None,
        candidates: int | None,
    ) -> None:
        """Replace the words; only the last layers change.

        Args:
            words: the K classes.
            layers: of :meth:`OVHeadModule.final_layers`.
            owner: (W,) the class of each word; None: every class has one.
            fusion: L maps -> L maps, for these words; None for none.
            candidates: see :meth:`KDEOVDetector.fold`.
        """
        # the new layers, as plain convolutions where that was asked
        for layer in layers:
            layer.eval()
            if self.fuse:
                fuse_conv_bn(layer)
            layer.requires_grad_(False)
        # what depends on the words: last layers, candidates, fusion
        module: FoldedHeadModule = self.bbox_head.head_module
        module.set_words(layers, owner)
        self.candidates = None
        if candidates is not None:
            # probes are kept where the maps are the same for all images
            maps = module.layers
            same = [] if isinstance(module.cls_preds[0][-1], FoldedLevel) else maps
            self.candidates = CandidateLocations(
                maps[0].weight, candidates, layers=same
            )
        self.fusion = fusion
        if fusion is not None:
            fusion.requires_grad_(False).eval()
            if self.fuse:
                fuse_conv_bn(fusion)
        self.words = tuple(words)
        if self.static:
            self.static.drop()

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> P3, P4, P5 as the head takes them."""
        feats = super().extract_feat(as_weights(self.backbone, batch_inputs))
        return feats if self.fusion is None else self.fusion(feats)

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
        text: None = None,
        cfg: Any = None,
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with boxes, scores and names.

        Args:
            batch_inputs: normalised and padded.
            batch_data_samples: B samples.
            rescale: boxes in pixels of the original images.
            text: the words are fixed; nothing but None.
            cfg: instead of ``test_cfg``.

        Raises:
            ValueError: samples that ask for other words.
        """
        # samples may come without words, but not with others
        for sample in batch_data_samples:
            if tuple(sample.metainfo.get("words", self.words)) != self.words:
                raise ValueError(
                    f"this detector was folded for {len(self.words)} words, "
                    f"{self.words[:3]} ..., and the samples ask for others: leave "
                    "their `words` out, or fold these."
                )

        cfg = self.bbox_head.test_cfg if cfg is None else cfg
        query = BoxQuery(self.words, None, cfg, rescale)
        ask = partial(self.find_boxes, query=query)
        results = as_if_alone(batch_inputs, batch_data_samples, ask)
        describe(batch_data_samples, results, self.words, cfg)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def find_boxes(
        self, images: Tensor, samples: SampleList, query: BoxQuery
    ) -> list[InstanceData]:
        """Boxes of images (n, 3, H, W) of one padded shape."""
        cfg = query.cfg

        def ask(images: Tensor, samples: SampleList) -> list[InstanceData]:
            return self.bbox_head.predict(
                self.extract_feat(images),
                samples,
                rescale=query.rescale,
                cfg=cfg,
                candidates=self.candidates,
            )

        def fixed(images: Tensor) -> Tensor:
            return self.bbox_head.fixed(
                self.extract_feat(images), len(query.words), cfg
            )

        static = None if self.candidates else self.static
        if static is None or not static.suits(self, images, cfg):
            return ask(images, samples)
        return static.find(self, fixed, [images], samples, query, ask)


def fuse_before_words(detector: Any) -> Any:
    """Fold BatchNorms into convolutions, in place; the projections stay as they are."""
    module = detector.bbox_head.head_module
    # everything before the projections
    parts = detector.backbone, detector.neck, detector.fusion, module.reg_preds
    for part in filter(None, parts):
        fuse_conv_bn(part)
    for branch in module.cls_preds:
        fuse_conv_bn(branch[:-1])
    return detector
