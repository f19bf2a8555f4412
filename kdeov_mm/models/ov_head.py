"""Boxes by YOLOv8, class scores by embedding . text."""

import copy
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

from .distill.losses import initial_log_scale
from .postprocess import (
    PART,
    Layer,
    PromisingPlaces,
    above,
    best_boxes,
    is_simple,
    least_logit,
    logits_of,
    most_boxes,
    one_by_one,
    score_in_parts,
)
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
        return [one_by_one(e, kernel, b) for e, b in zip(embeds, biases)]

    def _kernel(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Words (K, D) -> what embeddings are multiplied by (K, D); biases (L, K)."""
        scale = self.log_scale.exp()
        vectors, offsets = self.adapter(text) if self.adapter else (text, 0)
        biases = (scale * offsets + self.bias[:, None]).expand(-1, text.shape[0])
        return scale * vectors, biases

    @property
    def folds(self) -> bool:
        """Whether projection, norm and text product now are one linear map."""
        return not self.l2_norm and all(b[-1].is_linear for b in self.cls_preds)

    def folded(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Words (K, D) -> per level the 1x1 convolution of all three: (K, C), (K,)."""
        with torch.autocast(text.device.type, enabled=False):
            kernel, biases = (each.float() for each in self._kernel(text))
            kernel = kernel / self.embed_dims**0.5
            maps = [branch[-1].linear() for branch in self.cls_preds]
            return [
                (kernel @ w.float(), kernel @ v.float() + b)
                for (w, v), b in zip(maps, biases)
            ]

    def _folding_is_cheaper(self, number: int) -> bool:
        """Of K words, features (C) times (K, C), or embedded (D) and times (K, D)."""
        channels, dims = self.cls_preds[0][-1].project.in_channels, self.embed_dims
        if channels <= dims or torch.compiler.is_exporting():  # for any number of words
            return channels <= dims
        return channels * number <= dims * (channels + number)

    def apart(
        self, x: tuple[Sequence[Tensor], Tensor, Tensor | None]
    ) -> tuple[list[Tensor], list[Layer], Tensor | None, list[list[Tensor]]]:
        """All but the last product, in the order that costs the least.

        Args:
            x: as of :meth:`forward`.

        Returns:
            L maps (B, C, H_l, W_l); per level the 1x1 convolution to the words,
            (W, C) and (W,); ``owner``; the boxes of :meth:`trunk`.
        """
        feats, text, owner = x
        hidden, *boxes = self.trunk(feats)
        if self.folds and self._folding_is_cheaper(text.shape[0]):
            return hidden, self.folded(text), owner, boxes
        kernel, biases = self._kernel(text)
        return self._project(hidden), [(kernel, b) for b in biases], owner, boxes

    def forward(
        self, x: tuple[Sequence[Tensor], Tensor, Tensor | None]
    ) -> tuple[list[Tensor], ...]:
        """``(feats, text, owner)`` -> logits and boxes, as the parent's outputs.

        ``owner`` (W,) is the class of each of W words, in order: a class scores what
        the best of its words does. None: every class has one word.
        """
        hidden, layers, owner, boxes = self.apart(x)
        return logits_of(hidden, layers, owner), *boxes

    @torch.no_grad()
    def ends(self, text: Tensor) -> list[nn.Sequential]:
        """Words (W, D) -> per level what follows the trunk, in convolutions."""
        if self.folds and self._folding_is_cheaper(text.shape[0]):
            return [nn.Sequential(self._end(*each)) for each in self.folded(text)]
        kernel, biases = self._kernel(text)
        unit = [UnitLength()] if self.l2_norm else []
        kernel = kernel if unit else kernel / self.embed_dims**0.5
        return [
            nn.Sequential(copy.deepcopy(branch[-1]), *unit, self._end(kernel, bias))
            for branch, bias in zip(self.cls_preds, biases)
        ]

    def _end(self, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
        """The 1x1 convolution of a kernel (K, C) and a bias (K,)."""
        layer = nn.Conv2d(kernel.shape[1], len(kernel), 1)
        kernel, bias = kernel.to(self.bias.dtype), bias.to(self.bias.dtype)
        layer.weight = nn.Parameter(kernel[..., None, None].contiguous())
        layer.bias = nn.Parameter(bias.contiguous())
        return layer

    def folded_module(self) -> "FoldedHeadModule":
        """A copy for fixed words, which :meth:`FoldedHeadModule.set_words` sets."""
        module = FoldedHeadModule(self)
        module.cls_preds = copy.deepcopy(nn.ModuleList(b[:-1] for b in self.cls_preds))
        module.reg_preds = copy.deepcopy(self.reg_preds)
        return module.to(self.bias.dtype).eval()


class UnitLength(nn.Module):
    """Embeddings (B, D, H, W) divided by their L2 norm."""

    def forward(self, embeds: Tensor) -> Tensor:
        """Divide."""
        return F.normalize(embeds, dim=1)


class FoldedHeadModule(YOLOv8HeadModule):
    """The head with its words fixed: a closed-set YOLOv8's, its last layers the words.

    Its state has the layout of ``mmyolo.YOLOv8HeadModule`` with K classes, where
    projection and words fold into one convolution (BatchNorm, no L2 norm).

    Args:
        head: the head whose words are fixed.
    """

    def __init__(self, head: OVHeadModule) -> None:
        super().__init__(
            num_classes=1,  # the class branch would be as wide as there are classes
            in_channels=head.in_channels,
            num_base_priors=head.num_base_priors,
            featmap_strides=head.featmap_strides,
            reg_max=head.reg_max,
            norm_cfg=head.norm_cfg,
            act_cfg=head.act_cfg,
        )
        self.depth = len(head.cls_preds[0]) - 1  # layers before the words

    def set_words(self, ends: Sequence[nn.Sequential], owner: Tensor | None) -> None:
        """Put words where others were, or none.

        Args:
            ends: of :meth:`OVHeadModule.ends`.
            owner: (W,) the class of each word; None: every class has one.
        """
        self.register_buffer("owner", owner, persistent=owner is not None)
        for i, (branch, end) in enumerate(zip(self.cls_preds, ends)):
            self.cls_preds[i] = nn.Sequential(*branch[: self.depth], *end)
        words = len(self.layers[0][1])
        self.num_classes: int = words if owner is None else int(owner[-1]) + 1

    @property
    def layers(self) -> list[Layer]:
        """Per level the 1x1 convolution to the words, (W, C) and (W,)."""
        ends = [branch[-1] for branch in self.cls_preds]
        return [(end.weight[..., 0, 0], end.bias) for end in ends]

    def apart(
        self, feats: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Layer], Tensor | None, list[list[Tensor]]]:
        """As :meth:`OVHeadModule.apart`, of feature maps alone."""
        trunks = [branch[:-1] for branch in self.cls_preds]
        hidden, *boxes = multi_apply(self.forward_single, feats, trunks, self.reg_preds)
        return hidden, self.layers, self.owner, boxes

    def forward(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Feature maps -> logits (B, K, H_l, W_l) and box sides, per level."""
        hidden, layers, owner, boxes = self.apart(feats)
        return logits_of(hidden, layers, owner, self.num_classes), *boxes


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

    def folded_module(self) -> FoldedHeadModule:
        """As the parent's; the box distribution's mean is the side, everywhere."""
        module = super().folded_module()
        bins = torch.arange(self.reg_max, dtype=torch.float)
        share = (1 - (bins - self.grid_side / 2).abs()).clamp(min=1e-30)
        for branch in module.reg_preds:
            nn.init.zeros_(branch[-1].weight)
            branch[-1].bias.data = share.log().repeat(4).to(branch[-1].bias)
        return module


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
        self.places: PromisingPlaces | None = None

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

    def predict(
        self, x: Any, batch_data_samples: SampleList, rescale: bool = False
    ) -> list[InstanceData]:
        """What the head module is given, and B samples -> boxes of each image.

        Of very many words, scores come in parts, so that memory is bounded, where the
        ``test_cfg`` is a plain one (:func:`is_simple`); with :class:`PromisingPlaces`,
        of promising places alone. Else it is the parent's.
        """
        hidden, layers, owner, boxes = self.head_module.apart(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        number = sum(h[0, 0].numel() for h in hidden) * len(layers[0][0])
        number *= len(metas)
        if self.places is None and (number <= PART or not is_simple(self.test_cfg)):
            logits = logits_of(hidden, layers, owner)
            return self.predict_by_feat(
                logits, boxes[0], batch_img_metas=metas, rescale=rescale
            )
        decoded = self.decode(boxes[0])
        results = []
        for i, meta in enumerate(metas):
            rows = [h[i].flatten(1).T for h in hidden]  # (C, H, W) -> (H*W, C)
            where = None if self.places is None else self.places(rows)
            found = score_in_parts(rows, layers, owner, where, self.test_cfg)
            results.append(best_boxes(found, decoded[i], meta, self.test_cfg, rescale))
        return results

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
        if not with_nms or not is_simple(cfg):
            return super().predict_by_feat(
                cls_scores, bbox_preds, objectnesses, metas, cfg, rescale, with_nms
            )
        boxes = self.decode(bbox_preds)
        results = []
        for i, meta in enumerate(metas):
            rows = [scores[i].permute(1, 2, 0).flatten(0, 1) for scores in cls_scores]
            found = above(rows, least_logit(cfg), most_boxes(cfg))
            results.append(best_boxes(found, boxes[i], meta, cfg, rescale))
        return results

    def decode(self, sides: Sequence[Tensor]) -> Tensor:
        """Box sides (B, 4, H_l, W_l) in strides -> boxes (B, N, 4), xyxy pixels."""
        points = torch.cat(
            self.prior_generator.grid_priors(
                [level.shape[2:] for level in sides],
                sides[0].dtype,
                sides[0].device,
                with_stride=True,
            )
        )
        return self.bbox_coder.decode(
            points[None, :, :2], _flatten(sides), points[:, 2]
        )

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


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """L maps (B, C, H_l, W_l) -> (B, sum H_l * W_l, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
