"""Boxes by YOLOv8, class scores by embedding . text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.utils import multi_apply, unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from mmyolo.models.dense_heads import YOLOv8Head, YOLOv8HeadModule
from torch import Tensor, nn
from torchvision.ops import nms

from .losses import initial_log_scale
from .projection import SpatialProjection


class Locations(NamedTuple):
    """What the student says at its N = sum H_l * W_l locations.

    Attributes:
        embeds: (B, N, D), with gradient.
        boxes: (B, N, 4), xyxy in pixels of the padded input, detached.
        sharpness: (B, N) in (0, 1], detached: mean over the four sides of the
            largest probability of the box distribution. High where edges are
            found, whatever the object's class.
        centres: (N, 2), xy in pixels.
    """

    embeds: Tensor
    boxes: Tensor
    sharpness: Tensor
    centres: Tensor


@MODELS.register_module()
class OVHeadModule(YOLOv8HeadModule):
    """YOLOv8's two branches; the class branch ends in the teacher's space.

    A location's score for a word t is
    ``sigmoid(exp(log_scale) * <e, t> + bias_l)``, with a learnable temperature
    (initially 1 / 0.07, CLIP's) and one bias per level, initially the log
    prior of YOLOv8. The embedding e has about unit length: divided by its L2
    norm, or (``l2_norm=False``) only by sqrt(D), which keeps the head linear
    after a BatchNorm, so that it folds into one convolution.

    Args:
        embed_dims: dimension D of the teacher's space.
        in_channels: channels of each level before ``widen_factor``.
        hidden_channels: least width of the class branch.
        projection_norm: norm of :class:`SpatialProjection`; BatchNorm by default.
        l2_norm: divide embeddings by their length.
        adapter: config of :class:`ClassFiLM`; None leaves the words as they are.
        prior_words: number of words of the log prior.
        prior_size: image side in pixels of the log prior.
        kwargs: those of ``mmyolo.YOLOv8HeadModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        in_channels: int | Sequence[int],
        hidden_channels: int = 80,
        projection_norm: dict[str, Any] | None = None,
        l2_norm: bool = False,
        adapter: dict[str, Any] | None = None,
        prior_words: int = 80,
        prior_size: int = 640,
        **kwargs: Any,
    ) -> None:
        self.embed_dims = embed_dims
        self.projection_norm = projection_norm or dict(type="BN")
        self.l2_norm = l2_norm
        self.prior = prior_words * prior_size**2
        # the parent's class branch is at least `num_classes` wide
        super().__init__(hidden_channels, in_channels, **kwargs)
        self.adapter = MODELS.build(adapter) if adapter else None

    def _init_layers(self) -> None:
        super()._init_layers()
        for branch in self.cls_preds:
            branch[-1] = SpatialProjection(
                branch[-1].in_channels, self.embed_dims, self.projection_norm
            )
        self.log_scale = nn.Parameter(initial_log_scale())
        self.bias = nn.Parameter(torch.zeros(self.num_levels))

    def init_weights(self) -> None:
        """Box sides of one bin, and the log prior on each level's bias."""
        BaseModule.init_weights(self)
        for branch in self.reg_preds:
            nn.init.ones_(branch[-1].bias)
        strides = torch.tensor(self.featmap_strides, dtype=torch.float)
        with torch.no_grad():  # in place: the model may be on its device already
            self.bias.copy_((5 * strides**2 / self.prior).log())

    def trunk(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """L maps (B, C_l, H_l, W_l) -> what is projected, and boxes, per level.

        Returns:
            L maps (B, C, H_l, W_l); L box sides (B, 4, H_l, W_l) in strides; in
            training, also L box logits (B, H_l * W_l, 4, reg_max).
        """
        trunks = [branch[:-1] for branch in self.cls_preds]
        return multi_apply(self.forward_single, feats, trunks, self.reg_preds)

    def embed(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """As :meth:`trunk`, projected: embeddings (B, D, H_l, W_l), and boxes."""
        hidden, *boxes = self.trunk(feats)
        return self._project(hidden), *boxes

    def _project(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        embeds = [branch[-1](h) for branch, h in zip(self.cls_preds, hidden)]
        if self.l2_norm:
            return [F.normalize(e, dim=1) for e in embeds]
        return [e / self.embed_dims**0.5 for e in embeds]

    def classify(self, embeds: Sequence[Tensor], text: Tensor) -> list[Tensor]:
        """L maps (B, D, H, W) and words (K, D) -> logits (B, K, H, W)."""
        kernel, biases = self._kernel(text)
        return [_one_by_one(e, kernel, b) for e, b in zip(embeds, biases)]

    def _kernel(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Words (K, D) -> what embeddings are multiplied by (K, D); biases (L, K)."""
        scale = self.log_scale.exp()
        vectors, offsets = self.adapter(text) if self.adapter else (text, 0)
        biases = (scale * offsets + self.bias[:, None]).expand(-1, len(text))
        return scale * vectors, biases

    @property
    def folds(self) -> bool:
        """Whether projection, norm and text product now are one linear map."""
        return not self.l2_norm and all(b[-1].is_linear for b in self.cls_preds)

    def folded(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Words (K, D) -> per level the 1x1 convolution of all three: (K, C), (K,).

        Features have fewer channels C than embeddings have dimensions D, so it is
        cheaper than to embed first, the more the more words are asked.
        """
        with torch.autocast(text.device.type, enabled=False):
            kernel, biases = self._kernel(text)
            kernel = kernel / self.embed_dims**0.5
            maps = [branch[-1].linear() for branch in self.cls_preds]
            return [(kernel @ w, kernel @ v + b) for (w, v), b in zip(maps, biases)]

    def forward(
        self, x: tuple[Sequence[Tensor], Tensor, Tensor | None]
    ) -> tuple[list[Tensor], ...]:
        """``(feats, text, owner)`` -> logits and boxes, as the parent's outputs.

        ``owner`` (W,) is the class of each of W words, in order: a class scores what
        the best of its words does. None: every class has one word.
        """
        feats, text, owner = x
        hidden, *boxes = self.trunk(feats)
        if self.folds:
            logits = [
                _one_by_one(h, kernel, bias)
                for h, (kernel, bias) in zip(hidden, self.folded(text))
            ]
        else:
            logits = self.classify(self._project(hidden), text)
        if owner is not None:
            logits = [best_of(each, owner) for each in logits]
        return logits, *boxes


@MODELS.register_module()
class GridHeadModule(OVHeadModule):
    """Grid default boxes: a square about each location, nothing learnt.

    The original KDEOV design's boxes; kept to be compared with.

    Args:
        grid_side: side of the boxes, in strides of the level.
        kwargs: those of :class:`OVHeadModule`.
    """

    def __init__(self, grid_side: float = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid_side = grid_side

    def trunk(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """As the parent's, with the same box sides everywhere."""
        hidden, sides, *logits = super().trunk(feats)
        fixed = [torch.full_like(s, self.grid_side / 2) for s in sides]
        return hidden, fixed, *logits


@MODELS.register_module()
class WordBCELoss(nn.Module):
    """Binary cross-entropy of every word at every location.

    A word that is not verified in an image gets weight 0 there: the loss is
    weighted, the logits are left alone (a logit of -1e7 is NaN in fp16).

    Args:
        loss_weight: factor of the loss.
    """

    def __init__(self, loss_weight: float = 0.5) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.word_weight: Tensor | None = None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets (B, N, K) -> unreduced loss (B, N, K)."""
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), targets.float(), reduction="none"
        )
        if self.word_weight is not None:
            loss = loss * self.word_weight
        return loss * self.loss_weight


@MODELS.register_module()
class OVHead(YOLOv8Head):
    """Open-vocabulary YOLOv8 head: TAL assignment, DFL boxes, words as text.

    Assignment, losses and post-processing are the parent's. It reads the
    number of classes from attributes, which here follow the vocabulary.

    Args:
        head_module: config of :class:`OVHeadModule`.
        loss_cls: config of :class:`WordBCELoss`.
        supervised: learn from boxes; False leaves all to the distillation.
        kwargs: those of ``mmyolo.YOLOv8Head``.
    """

    def __init__(
        self,
        head_module: dict[str, Any],
        loss_cls: dict[str, Any] | None = None,
        supervised: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            head_module, loss_cls=loss_cls or dict(type="mmdet.WordBCELoss"), **kwargs
        )
        self.supervised = supervised

    def loss_and_locations(
        self, feats: Sequence[Tensor], text: Tensor, samples: SampleList
    ) -> tuple[dict[str, Tensor], Locations]:
        """Detection losses, and the locations for the distillation heads.

        Args:
            feats: L maps (B, C_l, H_l, W_l).
            text: (K, D) unit vectors; labels of ``samples`` index them.
            samples: B samples; ``word_weight`` (K,) in the metainfo says
                which words are verified in the image (default: all).
        """
        embeds, sides, side_logits = self.head_module.embed(feats)
        logits = self.head_module.classify(embeds, text)
        gts, ignored, metas = unpack_gt_instances(samples)
        losses = self.loss_by_feat(logits, sides, side_logits, gts, metas, ignored)
        if not self.supervised:
            losses = {}
        return losses, self._locations(embeds, sides, side_logits)

    def loss_by_feat(
        self, cls_scores: Sequence[Tensor], *args: Any
    ) -> dict[str, Tensor]:
        """The parent's losses, for as many words as there are scores."""
        self.num_classes = self.assigner.num_classes = cls_scores[0].shape[1]
        metas, ones = args[3], torch.ones(self.num_classes)
        if any("word_weight" in meta for meta in metas):
            self.loss_cls.word_weight = torch.stack(
                [meta.get("word_weight", ones) for meta in metas]
            )[:, None].to(cls_scores[0].device)
        try:
            return super().loss_by_feat(cls_scores, *args)
        finally:
            self.loss_cls.word_weight = None

    def predict_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Any = None,
        batch_img_metas: Sequence[dict[str, Any]] | None = None,
        cfg: Any = None,
        rescale: bool = True,
        with_nms: bool = True,
    ) -> list:
        """The parent's boxes, at a cost that hardly grows with the number of words.

        The parent takes the sigmoid of all scores, and the non-maximum suppression of
        up to ``nms_pre`` boxes, of which ``max_per_img`` stay. Here the threshold is
        one of logits, and the suppression begins with the best boxes and ends when
        enough of them stay, which gives the same ones. Where the config asks for
        something else (one label per box, another suppression, boxes of a least
        size), it is the parent's.
        """
        cfg = self.test_cfg if cfg is None else cfg
        self.num_classes = cls_scores[0].shape[1]
        metas = batch_img_metas or []
        simple = (
            cfg.multi_label and with_nms and {*cfg.nms} == {"type", "iou_threshold"}
        )
        simple = simple and cfg.nms.type == "nms" and (cfg.max_per_img or 0) > 0
        if not simple or {"min_bbox_size", "yolox_style"} & {*cfg}:
            return super().predict_by_feat(
                cls_scores, bbox_preds, objectnesses, metas, cfg, rescale, with_nms
            )
        sizes = [scores.shape[2:] for scores in cls_scores]
        priors = self.prior_generator.grid_priors(
            sizes, bbox_preds[0].dtype, bbox_preds[0].device, with_stride=True
        )
        points = torch.cat(priors)
        sides = _flatten(bbox_preds)
        boxes = self.bbox_coder.decode(points[None, :, :2], sides, points[:, 2])
        results = []
        for i, meta in enumerate(metas):
            logits = [scores[i].permute(1, 2, 0) for scores in cls_scores]
            found = _best_boxes(logits, boxes[i], meta, cfg, rescale)
            results.append(found)
        return results

    def _locations(
        self,
        embeds: list[Tensor],
        sides: list[Tensor],
        side_logits: list[Tensor],
    ) -> Locations:
        priors, strides = self.flatten_priors_train, self.stride_tensor
        boxes = self.bbox_coder.decode(
            priors[..., :2], _flatten(sides).detach(), strides[..., 0]
        )
        bins = torch.cat(side_logits, 1).detach().softmax(-1)  # (B, N, 4, R)
        return Locations(
            _flatten(embeds),
            boxes,
            bins.amax(-1).mean(-1),
            priors[:, :2],
        )


def _one_by_one(feats: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Maps (B, C, H, W), kernel (K, C), bias (K,) -> (B, K, H, W)."""
    return F.conv2d(
        feats, kernel[..., None, None].to(feats.dtype), bias.to(feats.dtype)
    )


def best_of(logits: Tensor, owner: Tensor) -> Tensor:
    """Logits (B, W, ...) of words -> (B, K, ...), the best of each class's."""
    index = owner.view(-1, *[1] * (logits.ndim - 2)).expand_as(logits)
    shape = (len(logits), int(owner[-1]) + 1, *logits.shape[2:])
    return logits.new_empty(shape).scatter_reduce(
        1, index, logits, "amax", include_self=False
    )


def _best_boxes(
    logits: Sequence[Tensor],
    boxes: Tensor,
    meta: dict[str, Any],
    cfg: Any,
    rescale: bool,
) -> InstanceData:
    """One image's boxes after threshold, suppression class by class, and cap.

    Args:
        logits: L maps (H_l, W_l, K).
        boxes: (sum H_l * W_l, 4) xyxy, pixels of the padded input.
        meta: the image's metainfo.
        cfg: ``test_cfg``.
        rescale: boxes in pixels of the original image.
    """
    least = max(float(cfg.get("score_thr", 0)), 0.0)
    values, places = _above(logits, torch.logit(torch.tensor(least)).item())
    if rescale:
        if (pad := meta.get("pad_param")) is not None:
            boxes = boxes - boxes.new_tensor([pad[2], pad[0], pad[2], pad[0]])
        boxes = boxes / boxes.new_tensor(meta["scale_factor"]).repeat(2)
    most = min(len(values), cfg.get("nms_pre", 100000))
    number = 4 * cfg.max_per_img
    while True:  # what stays of the best n is the beginning of what stays of all
        scores, order = values.topk(min(number, most))
        location, labels = places[order].unbind(1)
        keep = _suppress(boxes[location], scores, labels, cfg.nms.iou_threshold)
        if len(keep) >= cfg.max_per_img or number >= most:
            break
        number *= 4
    keep = keep[: cfg.max_per_img]
    found = boxes[location[keep]]
    height, width = meta["ori_shape"][:2]
    found[:, 0::2].clamp_(0, width)
    found[:, 1::2].clamp_(0, height)
    return InstanceData(
        bboxes=found, scores=scores[keep].sigmoid(), labels=labels[keep]
    )


def _above(logits: Sequence[Tensor], threshold: float) -> tuple[Tensor, Tensor]:
    """Scores above a threshold.

    Args:
        logits: L maps (H_l, W_l, K).
        threshold: a logit.

    Returns:
        (n,) logits; (n, 2) the location, counted over all levels, and the word.
    """
    values, places, start = [], [], 0
    for level in logits:
        level = level.flatten(0, 1)  # (H, W, K) -> (H*W, K)
        busy = (level.amax(1) > threshold).nonzero()[:, 0]  # most places are empty
        chosen = level[busy]
        where = (chosen > threshold).nonzero()
        values.append(chosen[where[:, 0], where[:, 1]])
        places.append(torch.stack([busy[where[:, 0]] + start, where[:, 1]], 1))
        start += len(level)
    return torch.cat(values).float(), torch.cat(places)


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices that non-maximum suppression within each class leaves, best first."""
    # classes are moved apart, in double precision: 1203 of them reach far
    reach = boxes.max().double() + 1 if len(boxes) else 1
    return nms(boxes.double() + (labels * reach)[:, None], scores.double(), iou)


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """L maps (B, C, H_l, W_l) -> (B, sum H_l * W_l, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
