"""Which location stands for which object: task-aligned, without a look at values."""

import torch
from mmdet.registry import TASK_UTILS
from mmyolo.models.losses.iou_loss import bbox_overlaps
from mmyolo.models.task_modules.assigners import BatchTaskAlignedAssigner
from mmyolo.models.task_modules.assigners.utils import (
    select_candidates_in_gts,
    yolov6_iou_calculator,
)
from torch import Tensor


@TASK_UTILS.register_module()
class TaskAligner(BatchTaskAlignedAssigner):
    """mmyolo's task-aligned assigner, for a GPU that does not wait.

    The same targets (TOOD, Feng et al., 2021, section 3.2). The parent reads values
    back, and has one-hot codes of 64 bits for all locations and words, 10 GB of a large
    batch. Arguments are the parent's; ``num_classes`` does not matter.
    """

    @torch.no_grad()
    def forward(
        self,
        pred_bboxes: Tensor,
        pred_scores: Tensor,
        priors: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        pad_bbox_flag: Tensor,
    ) -> dict[str, Tensor]:
        """The targets of N locations of B images.

        Args:
            pred_bboxes: (B, N, 4), xyxy in pixels.
            pred_scores: (B, N, K), in [0, 1].
            priors: (N, 4), centres come first.
            gt_labels: (B, G, 1).
            gt_bboxes: (B, G, 4).
            pad_bbox_flag: (B, G, 1), 0 for those that fill up an image.

        Returns:
            ``fg_mask_pre_prior`` (B, N) bool, the locations with an object; its box,
            ``assigned_bboxes`` (B, N, 4); ``assigned_labels`` (B, N); and
            ``assigned_scores`` (B, N, K), the quality of the match for its word.
        """
        number = gt_bboxes.shape[1]
        if not number:
            return dict(
                fg_mask_pre_prior=torch.zeros_like(pred_scores[..., 0]).bool(),
                assigned_bboxes=torch.zeros_like(pred_bboxes),
                assigned_labels=torch.zeros_like(pred_scores[..., 0]).long(),
                assigned_scores=torch.zeros_like(pred_scores),
            )
        labels = gt_labels[..., 0].long()
        quality, overlaps = self._rate(pred_bboxes, pred_scores, labels, gt_bboxes)
        # an object's best locations, of those with their centre in its box
        inside = select_candidates_in_gts(priors[:, :2], gt_bboxes) > 0
        best = (quality * inside).topk(min(self.topk, len(priors))).indices
        taken = torch.zeros_like(inside).scatter(2, best, True)
        taken &= inside & (pad_bbox_flag > 0)
        # a location has one object: of several that of the best box
        first = torch.zeros_like(taken).scatter(1, overlaps.argmax(1, True), True)
        taken = torch.where(taken.sum(1, keepdim=True) > 1, first, taken)
        # what it is, and how well it is found next to the object's best location
        which = taken.byte().argmax(1)  # (B, N)
        quality, overlaps = quality * taken, overlaps * taken
        relative = overlaps.amax(2, True) / (quality.amax(2, True) + self.eps)
        value = (quality * relative).amax(1)
        label = labels.gather(1, which)
        scores = torch.zeros_like(pred_scores).scatter(
            2, label[..., None], value[..., None]
        )
        return dict(
            fg_mask_pre_prior=taken.any(1),
            assigned_bboxes=gt_bboxes.gather(1, which[..., None].expand(-1, -1, 4)),
            assigned_labels=label,
            assigned_scores=scores,
        )

    def _rate(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, truth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How well each location finds and names each object, and its IoU: (B, G, N).

        Args:
            boxes: (B, N, 4).
            scores: (B, N, K).
            labels: (B, G).
            truth: (B, G, 4).
        """
        index = labels[:, None].expand(-1, scores.shape[1], -1)
        named = scores.gather(2, index).transpose(1, 2)
        if self.use_ciou:
            pairs = boxes[:, None], truth[:, :, None]
            overlaps = bbox_overlaps(*pairs, bbox_format="xyxy").clamp(0)
        else:
            overlaps = yolov6_iou_calculator(truth, boxes)
        return named.pow(self.alpha) * overlaps.pow(self.beta), overlaps
