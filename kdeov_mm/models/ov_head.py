"""Boxes by YOLOv8, class scores by embedding . text."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from mmyolo.models.dense_heads import YOLOv8Head
from torch import Tensor

from .box_branches import without_autocast
from .distill.base import RegionEmbeds, joint_total
from .distill.regions import padded
from .fixed_boxes import fixed_boxes
from .postprocess import (
    PART,
    CandidateLocations,
    above,
    best_boxes,
    is_simple,
    least_logit,
    max_boxes,
    score_in_parts,
)


class Located(NamedTuple):
    """The locations of a batch, of L levels.

    Attributes:
        embeds: L maps (B, D, H_l, W_l).
        sides: L maps (B, 4, H_l, W_l) of box sides in strides.
        side_logits: L box logits (B, H_l * W_l, 4, R).
        regions: the same for the distillation.
    """

    embeds: list[Tensor]
    sides: list[Tensor]
    side_logits: list[Tensor]
    regions: RegionEmbeds


@MODELS.register_module()
class OVHead(YOLOv8Head):
    """Open-vocabulary YOLOv8 head: TAL assignment, DFL boxes, words as text.

    Assignment and losses are the parent's, in full precision and over the joint batch
    of all processes; so is the post-processing of unusual configs.

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

    def embed(self, feats: Sequence[Tensor]) -> Located:
        """L maps (B, C_l, H_l, W_l) -> embeddings and boxes of their locations."""
        hidden, sides, side_logits = self.head_module.trunk(feats)
        embeds = self.head_module.project(hidden)
        regions = self._regions(embeds, sides, side_logits)
        return Located(embeds, sides, side_logits, regions)

    def losses(
        self, located: Located, vectors: Tensor, samples: SampleList
    ) -> dict[str, Tensor]:
        """Detection losses; none of an unsupervised head.

        Args:
            located: of :meth:`embed`.
            vectors: (K, D) unit vectors; labels of ``samples`` index them.
            samples: B samples; ``verified`` (K,) bool in the metainfo says of which
                words it is known whether they are in the image (default: all). Others
                are learnt only where a box has their label.
        """
        if not self.supervised:
            return {}
        logits = self.head_module.classify(located.embeds, vectors)
        gts, ignored, metas = unpack_gt_instances(samples)
        return self.loss_by_feat(
            logits,
            located.sides,
            located.side_logits,
            gts,
            metas,
            ignored,
            located.regions.unlabelled,
        )

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        bbox_dist_preds: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
        batch_gt_instances_ignore: Any = None,
        unlabelled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of the parent, in float32, over the joint batch.

        Four things differ from the parent's. Boxes, assignment and losses are in
        float32 whatever the precision of the maps: the area of a box of 256 pixels is
        infinite in half precision. Each loss is a mean over the objects of the joint
        batch of all processes, so that the gradient, and with it clipping, means the
        same for every batch size. A word counts as absent only where it is verified,
        and not where an object is that nobody labelled.

        Args:
            cls_scores: L logits (B, K, H_l, W_l).
            bbox_preds: L box sides; those of ``bbox_dist_preds`` are taken.
            bbox_dist_preds: L box logits (B, H_l * W_l, 4, R).
            batch_gt_instances: B images' boxes and labels.
            batch_img_metas: B metainfos; ``verified`` (K,) bool, see
                :meth:`losses`.
            batch_gt_instances_ignore: not used, as in the parent.
            unlabelled: (B, N) bool, see :class:`RegionEmbeds`; None for no locations.
        """
        with without_autocast(cls_scores[0].device):
            # (B, N, K), (B, N, 4, R), and centres and strides (N, 4)
            logits = _flatten(cls_scores).float()
            distances = torch.cat(list(bbox_dist_preds), 1).float()
            points = self._points(cls_scores)
            boxes = self._decode(points, self.head_module.box_sides(distances))
            target = self._assign(logits, boxes, points, batch_gt_instances)
            args = logits, target, batch_img_metas, unlabelled
            loss_cls, total = self._class_loss(*args)
            most = sum(map(len, batch_gt_instances)) * self.assigner.topk
            losses = self._box_losses(boxes, distances, points, target, total, most)
        return dict(loss_cls=loss_cls, **losses)

    def _class_loss(
        self,
        logits: Tensor,
        target: dict[str, Tensor],
        metas: Sequence[dict[str, Any]],
        unlabelled: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The class loss for logits (B, N, K), and what sums are divided by."""
        # the quality of what is matched, of the joint batch; at least one object
        quality = target["assigned_scores"]  # (B, N, K)
        total, processes = joint_total(quality.sum())
        total = total.clamp(min=1) / processes
        # every word at every location, where it is verified or there
        loss = self.loss_cls(logits, quality)
        if any("verified" in meta for meta in metas):
            counts = _verified(metas, quality) | (quality > 0)
            loss = loss.masked_fill(~counts, 0)
        # nor where an object is that nobody labelled, unless a box is matched
        if unlabelled is not None:
            left_out = unlabelled & ~target["fg_mask_pre_prior"].bool()
            loss = loss.masked_fill(left_out[..., None], 0)
        return loss.sum() / total, total

    def _box_losses(
        self,
        boxes: Tensor,
        distances: Tensor,
        points: Tensor,
        target: dict[str, Tensor],
        total: Tensor,
        most: int,
    ) -> dict[str, Tensor]:
        """The losses of boxes where an object is matched.

        Args:
            boxes: (B, N, 4).
            distances: box logits (B, N, 4, R).
            points: centres and strides (N, 4).
            target: the assigner's.
            total: what sums are divided by.
            most: locations that have an object, at most.
        """
        # n locations of all images, and perhaps others of weight 0: how many have an
        # object is not known without a look; their boxes in strides
        found = target["fg_mask_pre_prior"].float().flatten()
        found, where = found.topk(min(most, len(found)), sorted=False)
        place = where % len(points)
        stride = points[place, 2:3]
        truth = target["assigned_bboxes"].flatten(0, 1)[where] / stride
        weight = target["assigned_scores"].sum(-1).flatten()[where] * found
        predicted = boxes.flatten(0, 1).index_select(0, where) / stride
        loss_bbox = self.loss_bbox(predicted, truth, reduction_override="none") * weight
        # the two bins next to each side
        sides = self.bbox_coder.encode(
            points[place, :2] / stride,
            truth,
            max_dis=self.head_module.reg_max - 1,
            eps=0.01,
        )
        loss_dfl = self.loss_dfl(
            distances.flatten(0, 1).index_select(0, where).flatten(0, 1),
            sides.flatten(),
            weight=weight[:, None].expand(-1, 4).flatten(),
            avg_factor=total,
        )
        return dict(loss_bbox=loss_bbox.sum() / total, loss_dfl=loss_dfl)

    def _assign(
        self,
        logits: Tensor,
        boxes: Tensor,
        points: Tensor,
        truth: Sequence[InstanceData],
    ) -> dict[str, Tensor]:
        """The assigner's targets for logits (B, N, K) and boxes (B, N, 4)."""
        labels, its = _side_by_side(truth, boxes.device)
        labels = labels[..., None]
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
        shapes = [(h.shape[2], h.shape[3]) for h in hidden]
        for i, meta in enumerate(metas):
            rows = [h[i].flatten(1).T for h in hidden]  # (C, H, W) -> (H*W, C)
            its = [layer.of(i) for layer in layers]
            where = None if candidates is None else candidates(rows, its)
            scored = score_in_parts(rows, its, owner, where, cfg)
            found = best_boxes(scored, decoded[i], meta, cfg, rescale, shapes)
            results.append(found)
        return results

    def fixed(self, x: Any, num_classes: int, cfg: Any) -> Tensor:
        """What :meth:`predict` is given -> what :func:`fixed_boxes` gives."""
        output = self.head_module.split_last(x)
        return fixed_boxes(output, self.decode(output.boxes[0]), num_classes, cfg)

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
        shapes = [(s.shape[2], s.shape[3]) for s in cls_scores]
        results = []
        for i, meta in enumerate(metas):
            rows = [scores[i].permute(1, 2, 0).flatten(0, 1) for scores in cls_scores]
            scored = above(rows, least_logit(cfg), max_boxes(cfg))
            found = best_boxes(scored, boxes[i], meta, cfg, rescale, shapes)
            results.append(found)
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
        points = self._points(sides)
        return RegionEmbeds(
            _flatten(embeds),
            self._decode(points, _flatten(sides).detach().float()),
            bins.amax(-1).mean(-1),
            points[:, :2],
            torch.zeros_like(bins[..., 0, 0], dtype=torch.bool),
        )


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """L maps (B, C, H_l, W_l) -> (B, sum H_l * W_l, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def _side_by_side(
    truth: Sequence[InstanceData], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Labels (B, G) and boxes (B, G, 4), zeros where an image has fewer."""
    labels = padded([objects.labels for objects in truth], device)
    return labels, padded([objects.bboxes for objects in truth], device)


def _verified(metas: Sequence[dict[str, Any]], quality: Tensor) -> Tensor:
    """Which words are verified in each image: (B, 1, K) bool; all, if not told."""
    every = torch.ones(quality.shape[2], dtype=torch.bool)
    rows = [meta.get("verified", every) for meta in metas]
    return torch.stack(rows)[:, None].to(quality.device, non_blocking=True)
