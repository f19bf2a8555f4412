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
from mmyolo.models.dense_heads import YOLOv8Head
from mmyolo.models.utils import gt_instances_preprocess
from torch import Tensor, nn

from .box_branches import BoxBranches, without_autocast
from .distill.base import RegionEmbeds, joint_total
from .folding import FoldedLevel, fold_level
from .postprocess import (
    PART,
    CandidateLocations,
    SplitOutput,
    above,
    best_boxes,
    is_simple,
    least_logit,
    max_boxes,
    score_in_parts,
)
from .projection import SpatialProjection
from .text_classifier import (
    Linear1x1,
    TextClassifier,
    TextEmbeds,
    rename_old_keys,
)


class HeadInput(NamedTuple):
    """What the head module is given.

    Attributes:
        feats: L maps (B, C_l, H_l, W_l).
        text: of the K classes.
    """

    feats: Sequence[Tensor]
    text: TextEmbeds


@MODELS.register_module()
class OVHeadModule(BoxBranches):
    """YOLOv8's two branches; the class branch ends in the teacher's space.

    A location's score for a class t is ``sigmoid(exp(logit_scale) * <e, t> + bias_l)``,
    see :class:`TextClassifier`; the bias of each level begins with YOLOv8's log prior.
    The embedding e has about unit length: divided by its L2 norm, or
    (``l2_norm=False``) only by sqrt(D). At test time projection, norms and words fold
    into one product (:func:`kdeov_mm.models.folding.fold_level`).

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
        # after the branches: random numbers are drawn in the order of version 0.1.0
        if adapter:
            self.classifier.adapter = MODELS.build(adapter)
        self._register_load_state_dict_pre_hook(rename_old_keys)

    def _init_layers(self) -> None:
        # before the branches: optimizers number parameters in this order since 0.1.0
        self.classifier = TextClassifier(num_biases=self.num_levels)
        super()._init_layers()
        # in place of the last convolution, to K classes
        for branch in self.cls_preds:
            branch[-1] = SpatialProjection(
                branch[-1].in_channels, self.embed_dims, self.projection_norm
            )

    def init_weights(self) -> None:
        """Box sides of one bin, and the log prior on each level's bias."""
        BaseModule.init_weights(self)
        # as YOLOv8's head
        for branch in self.reg_preds:
            nn.init.ones_(branch[-1].bias)
        strides = torch.tensor(self.featmap_strides, dtype=torch.float)
        # in place: the model may be on its device already
        with torch.no_grad():
            self.classifier.bias.copy_((5 * strides**2 / self.prior).log())

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
        # (B, C, H_l, W_l) -> (B, D, H_l, W_l)
        embeds = [branch[-1](h) for branch, h in zip(self.cls_preds, hidden)]
        if self.l2_norm:
            return [F.normalize(e, dim=1) for e in embeds]
        return [e / self.embed_dims**0.5 for e in embeds]

    def classify(self, embeds: Sequence[Tensor], vectors: Tensor) -> list[Tensor]:
        """L maps (B, D, H, W) and vectors (K, D) -> logits (B, K, H, W), in float32."""
        # in full precision: of half logits other locations are matched
        with without_autocast(vectors.device):
            layers = self.classifier.layers(vectors.float())
            return [layer(embed.float()) for embed, layer in zip(embeds, layers)]

    @property
    def folds(self) -> bool:
        """Whether projection, norms and text product now are one linear map."""
        return all(branch[-1].is_linear for branch in self.cls_preds)

    @property
    def is_fixed(self) -> bool:
        """Whether that map is the same for all images: no GroupNorm, no L2 norm."""
        return not self.l2_norm and all(b[-1].is_fixed for b in self.cls_preds)

    def _folding_is_cheaper(self, number: int) -> bool:
        """Of K words, features (C) times (K, C), or embedded (D) and times (K, D)."""
        # multiplications per location
        channels, dims = self.cls_preds[0][-1].project.in_channels, self.embed_dims
        # an exported graph serves any number of words
        if channels <= dims or torch.compiler.is_exporting():
            return channels <= dims
        return channels * number <= dims * (channels + number)

    def split_last(self, x: HeadInput) -> SplitOutput:
        """All but the last product, in the order that costs the least."""
        hidden, *boxes = self.trunk(x.feats)
        vectors, owner = x.text
        layers = self.classifier.layers(vectors)
        # features times the folded matrix, or embeddings times the vectors; `len`
        # would fix the number of words in an exported graph
        if self.folds and self._folding_is_cheaper(vectors.shape[0]):
            branches = zip(self.cls_preds, hidden, layers)
            levels = [fold_level(b[-1], h, w, self.l2_norm) for b, h, w in branches]
            scaled, folded = (
                [level[0] for level in levels],
                [level[1] for level in levels],
            )
            return SplitOutput(scaled, folded, owner, boxes)
        return SplitOutput(self._project(hidden), layers, owner, boxes)

    def forward(self, x: HeadInput) -> tuple[list[Tensor], ...]:
        """Features and text -> logits and boxes, as the parent's outputs.

        A class with several vectors gets the score of the best of them.
        """
        output = self.split_last(x)
        return output.logits(), *output.boxes

    @torch.no_grad()
    def final_layers(self, vectors: Tensor, fold: bool = True) -> list[nn.Sequential]:
        """Vectors (W, D) -> for each level what follows the trunk.

        A convolution where projection, norm and words are the same map for all images;
        else a :class:`FoldedLevel`.

        Args:
            vectors: of the words.
            fold: False leaves the projection as it is, with a convolution behind it.
        """
        layers = self.classifier.layers(vectors)
        fold = fold and self.folds and self._folding_is_cheaper(vectors.shape[0])
        ends = []
        for branch, words in zip(self.cls_preds, layers):
            projection = branch[-1]
            if fold and self.is_fixed:
                # the features do not matter
                _, layer = fold_level(projection, vectors, words, False)
                ends.append(nn.Sequential(self._conv(layer)))
            elif fold:
                level = copy.deepcopy(projection), self._conv(words), self.l2_norm
                ends.append(nn.Sequential(FoldedLevel(*level)))
            else:
                # without L2 norm, sqrt(D) goes into the kernel
                unit = [UnitLength()] if self.l2_norm else []
                norm = 1 if self.l2_norm else self.embed_dims**0.5
                conv = self._conv(Linear1x1(words.weight / norm, words.bias))
                ends.append(nn.Sequential(copy.deepcopy(projection), *unit, conv))
        return ends

    def _conv(self, layer: Linear1x1) -> nn.Conv2d:
        """The convolution as a module, in the precision of the head."""
        # contiguous: exporters and channels-last memory need it
        conv = nn.Conv2d(layer.weight.shape[1], len(layer.weight), 1)
        dtype = self.classifier.logit_scale.dtype
        weight = layer.weight.to(dtype)[..., None, None]
        conv.weight = nn.Parameter(weight.contiguous())
        conv.bias = nn.Parameter(layer.bias.to(dtype).contiguous())
        return conv

    def folded_boxes(self) -> Any:
        """A copy of the box branches, for a folded head."""
        return copy.deepcopy(self.reg_preds)


class UnitLength(nn.Module):
    """Embeddings (B, D, H, W) divided by their L2 norm."""

    def forward(self, embeds: Tensor) -> Tensor:
        """Divide."""
        return F.normalize(embeds, dim=1)


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

    def box_sides(self, logits: Tensor) -> Tensor:
        """The same sides everywhere, whatever the logits (..., 4, R)."""
        return torch.full_like(logits[..., 0], self.grid_side / 2, dtype=torch.float)

    def folded_boxes(self) -> Any:
        """As the parent's; the mean of the box distribution is the side, everywhere."""
        branches = super().folded_boxes()
        # all probability on the two bins next to the side
        bins = torch.arange(self.reg_max, dtype=torch.float)
        share = (1 - (bins - self.grid_side / 2).abs()).clamp(min=1e-30)
        for branch in branches:
            nn.init.zeros_(branch[-1].weight)
            branch[-1].bias.data = share.log().repeat(4).to(branch[-1].bias)
        return branches


@MODELS.register_module()
class OVHead(YOLOv8Head):
    """Open-vocabulary YOLOv8 head: TAL assignment, DFL boxes, words as text.

    Assignment, losses and post-processing are the parent's. It reads the
    number of classes from attributes, which here follow the vocabulary.

    Args:
        head_module: config of :class:`OVHeadModule`.
        loss_cls: config of the class loss, unreduced: binary cross-entropy.
        supervised: learn from boxes; False leaves all to the distillation, and boxes,
            temperature and biases as they are.
        kwargs: those of ``mmyolo.YOLOv8Head``.
    """

    def __init__(
        self,
        head_module: dict[str, Any],
        loss_cls: dict[str, Any] | None = None,
        supervised: bool = True,
        **kwargs: Any,
    ) -> None:
        cross_entropy = dict(
            type="mmdet.CrossEntropyLoss",
            use_sigmoid=True,
            reduction="none",
            loss_weight=0.5,
        )
        super().__init__(head_module, loss_cls=loss_cls or cross_entropy, **kwargs)
        self.supervised = supervised
        # distributed training waits for ever for a parameter without a gradient
        if not supervised:
            self.head_module.classifier.requires_grad_(False)
            self.head_module.reg_preds.requires_grad_(False)

    def loss_and_regions(
        self, feats: Sequence[Tensor], vectors: Tensor, samples: SampleList
    ) -> tuple[dict[str, Tensor], RegionEmbeds]:
        """Detection losses, and the locations for the distillation.

        Args:
            feats: L maps (B, C_l, H_l, W_l).
            vectors: (K, D) unit vectors; labels of ``samples`` index them.
            samples: B samples; ``verified`` (K,) bool in the metainfo says of which
                words it is known whether they are in the image (default: all). Others
                are learnt only where a box has their label.
        """
        # embeddings and boxes; the class loss is left out of an unsupervised head
        embeds, sides, side_logits = self.head_module.embed(feats)
        regions = self._regions(embeds, sides, side_logits)
        if not self.supervised:
            return {}, regions
        logits = self.head_module.classify(embeds, vectors)
        gts, ignored, metas = unpack_gt_instances(samples)
        losses = self.loss_by_feat(logits, sides, side_logits, gts, metas, ignored)
        return losses, regions

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        bbox_dist_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """The losses of the parent, in float32, over the joint batch.

        Three things differ from the parent's. Boxes, assignment and losses are in
        float32 whatever the precision of the maps: the area of a box of 256 pixels is
        infinite in half precision. Each loss is a mean over the objects of the joint
        batch of all processes, so that the gradient, and with it clipping, means the
        same for every batch size. A word counts as absent only where it is verified.

        Args:
            cls_scores: L logits (B, K, H_l, W_l).
            bbox_preds: L box sides; those of ``bbox_dist_preds`` are taken.
            bbox_dist_preds: L box logits (B, H_l * W_l, 4, R).
            batch_gt_instances: B images' boxes and labels.
            batch_img_metas: B metainfos; ``verified`` (K,) bool, see
                :meth:`loss_and_regions`.
            batch_gt_instances_ignore: not used, as in the parent.
        """
        with without_autocast(cls_scores[0].device):
            # (B, N, K), (B, N, 4, R), and centres and strides (N, 4)
            logits = _flatten(cls_scores).float()
            distances = torch.cat(list(bbox_dist_preds), 1).float()
            points = self._points(cls_scores)
            boxes = self._decode(points, self.head_module.box_sides(distances))
            target = self._assign(logits, boxes, points, batch_gt_instances)
            # the quality of what is matched, of the joint batch; at least one object
            quality = target["assigned_scores"]  # (B, N, K)
            total, processes = joint_total(quality.sum())
            total = total.clamp(min=1) / processes
            # every word at every location, where it is verified or there
            loss_cls = self.loss_cls(logits, quality)
            if any("verified" in meta for meta in batch_img_metas):
                counts = _verified(batch_img_metas, quality) | (quality > 0)
                loss_cls = loss_cls.masked_fill(~counts, 0)
            losses = self._box_losses(boxes, distances, points, target, total)
        return dict(loss_cls=loss_cls.sum() / total, **losses)

    def _box_losses(
        self,
        boxes: Tensor,
        distances: Tensor,
        points: Tensor,
        target: dict[str, Tensor],
        total: Tensor,
    ) -> dict[str, Tensor]:
        """The losses of boxes where an object is matched.

        Args:
            boxes: (B, N, 4).
            distances: box logits (B, N, 4, R).
            points: centres and strides (N, 4).
            target: the assigner's.
            total: what sums are divided by.
        """
        # n images and locations; their boxes in strides
        where = target["fg_mask_pre_prior"].bool().nonzero(as_tuple=True)
        stride = points[:, 2:3][where[1]]
        truth = target["assigned_bboxes"][where] / stride
        weight = target["assigned_scores"].sum(-1)[where]
        loss_bbox = self.loss_bbox(boxes[where] / stride, truth, weight=weight[:, None])
        # the two bins next to each side
        sides = self.bbox_coder.encode(
            points[:, :2][where[1]] / stride,
            truth,
            max_dis=self.head_module.reg_max - 1,
            eps=0.01,
        )
        loss_dfl = self.loss_dfl(
            distances[where].flatten(0, 1),
            sides.flatten(),
            weight=weight[:, None].expand(-1, 4).flatten(),
            avg_factor=total,
        )
        return dict(loss_bbox=loss_bbox / total, loss_dfl=loss_dfl)

    def _assign(
        self,
        logits: Tensor,
        boxes: Tensor,
        points: Tensor,
        truth: Sequence[InstanceData],
    ) -> dict[str, Tensor]:
        """The assigner's targets for logits (B, N, K) and boxes (B, N, 4)."""
        # labels and boxes of all images, zeros where an image has fewer: (B, G, 5)
        objects = gt_instances_preprocess(truth, len(truth))
        labels, its = objects[..., :1], objects[..., 1:]
        exists = (its.sum(-1, keepdim=True) > 0).float()
        # the assigner reads the number of words from this attribute
        self.assigner.num_classes = logits.shape[2]
        scores = logits.detach().sigmoid()
        return self.assigner(boxes.detach(), scores, points, labels, its, exists)

    def predict(
        self,
        x: Any,
        batch_data_samples: SampleList,
        rescale: bool = False,
        cfg: Any = None,
        candidates: CandidateLocations | None = None,
    ) -> list[InstanceData]:
        """What the head module is given, and B samples -> boxes of each image.

        Args:
            x: of :class:`HeadInput`, or feature maps of a folded detector.
            batch_data_samples: B samples.
            rescale: boxes in pixels of the original images.
            cfg: instead of ``test_cfg``.
            candidates: chooses the locations at which the words are scored; None
                scores them everywhere.

        Returns:
            Of each image ``bboxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,). With
            very many words they are scored in parts, so that memory is bounded, where
            the config is a plain one (:func:`is_simple`).
        """
        cfg = self.test_cfg if cfg is None else cfg
        output = self.head_module.split_last(x)
        hidden, layers, owner, boxes = output
        metas = [sample.metainfo for sample in batch_data_samples]
        # few scores, or an unusual config: all of them at once
        number = sum(h[0, 0].numel() for h in hidden) * layers[0].weight.shape[-2]
        if candidates is None and (number * len(metas) <= PART or not is_simple(cfg)):
            return self.predict_by_feat(
                output.logits(),
                boxes[0],
                batch_img_metas=metas,
                cfg=cfg,
                rescale=rescale,
            )
        # else image by image, words in parts
        decoded, results = self.decode(boxes[0]), []
        for i, meta in enumerate(metas):
            rows = [h[i].flatten(1).T for h in hidden]  # (C, H, W) -> (H*W, C)
            where = None if candidates is None else candidates(rows)
            its = [layer.of(i) for layer in layers]
            scored = score_in_parts(rows, its, owner, where, cfg)
            results.append(best_boxes(scored, decoded[i], meta, cfg, rescale))
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
        metas = batch_img_metas or []
        if not with_nms or not is_simple(cfg):
            # the parent keeps the number of classes, and the grid of its last image, in
            # the head: each call has its own, or threads would change one another's
            head = copy.copy(self)
            head.num_classes = cls_scores[0].shape[1]
            # it cuts the list at the cap: -1, for none, would cost the last box
            if (cfg.get("max_per_img") or 0) <= 0:
                cfg = copy.copy(cfg)
                cfg.max_per_img = None
            return super(OVHead, head).predict_by_feat(
                cls_scores, bbox_preds, objectnesses, metas, cfg, rescale, with_nms
            )
        # scores above the threshold first, then suppression of the best boxes
        boxes = self.decode(bbox_preds)
        results = []
        for i, meta in enumerate(metas):
            rows = [scores[i].permute(1, 2, 0).flatten(0, 1) for scores in cls_scores]
            scored = above(rows, least_logit(cfg), max_boxes(cfg))
            results.append(best_boxes(scored, boxes[i], meta, cfg, rescale))
        return results

    def decode(self, sides: Sequence[Tensor]) -> Tensor:
        """Box sides (B, 4, H_l, W_l) in strides -> boxes (B, N, 4), xyxy pixels.

        In float32, whatever the precision of the maps.
        """
        return self._decode(self._points(sides), _flatten(sides).float())

    def _decode(self, points: Tensor, sides: Tensor) -> Tensor:
        # points (N, 4) and sides (B, N, 4) -> boxes (B, N, 4)
        return self.bbox_coder.decode(points[None, :, :2], sides, points[:, 2])

    def _points(self, maps: Sequence[Tensor]) -> Tensor:
        """Centres and strides of the locations of L maps: (N, 4) float32, xy pixels."""
        return torch.cat(
            self.prior_generator.grid_priors(
                [level.shape[2:] for level in maps],
                torch.float32,
                maps[0].device,
                with_stride=True,
            )
        )

    def _regions(
        self, embeds: list[Tensor], sides: list[Tensor], side_logits: list[Tensor]
    ) -> RegionEmbeds:
        """The locations, with detached boxes, for the distillation."""
        # how sure the box distribution is of its four sides
        bins = torch.cat(side_logits, 1).detach().float().softmax(-1)  # (B, N, 4, R)
        return RegionEmbeds(
            _flatten(embeds),
            self.decode([level.detach() for level in sides]),
            bins.amax(-1).mean(-1),
            self._points(sides)[:, :2],
        )


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """L maps (B, C, H_l, W_l) -> (B, sum H_l * W_l, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def _verified(metas: Sequence[dict[str, Any]], quality: Tensor) -> Tensor:
    """Which words are verified in each image: (B, 1, K) bool; all, if not told."""
    every = torch.ones(quality.shape[2], dtype=torch.bool)
    rows = [meta.get("verified", every) for meta in metas]
    return torch.stack(rows)[:, None].to(quality.device)
