"""Distillation of whole images, and of crops as images of their own."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from ...clip.teacher_batch import TeacherBatch
from ..pixels import filled_part
from ..text_classifier import TextClassifier, TextEmbeds, rename_old_keys
from .base import CropFeatures, Needs, StudentBatch, joint_total
from .losses import InfoNCE
from .regions import RegionPicker


@MODELS.register_module(name=["ImageDistillation", "GlobalDistillation"])
class ImageDistillation(RegionPicker):
    """One embedding for each image, which learns the teacher's, or a caption's.

    An image's embedding is pulled to the teacher's (``distances``), to its caption's
    (``contrast``), or to both: the FeatureAlignment loss of the original KDEOV design.
    In ``model.distill`` it is left aside at test time; as ``model.global_head``
    (:class:`GlobalHead`) it stays, and can also learn from crops.

    Args:
        projection: config of :class:`GlobalProjection`.
        distances: name -> config of a distance in ``losses.py``, to the teacher's
            embedding.
        contrast: config of :class:`InfoNCE` against one caption per image
            (transform ``LoadCaptions``), of several the mean; None for none.
        target: the teacher's embedding of an image: ``'image'``, of the whole, or
            ``'regions'``, the normalised mean over the regions (for a teacher that
            knows objects, not scenes).
        crops: regions per image that the student embeds as images, drawn at random
            from the batch, at the cost of as many whole images: of smaller ones, more.
        crop_sizes: sides of the crops in pixels, multiples of the largest stride; each
            has the same share of the cost.
        calibrate: factor of the cross-entropy of the crops with a label among the words
            of the step, from which only the temperature learns.
        sources, regions: arguments of :class:`RegionPicker`; no regions by default.
    """

    kind = "global"
    takes_crops = False

    def __init__(
        self,
        projection: dict[str, Any],
        distances: dict[str, dict[str, Any]] | None = None,
        contrast: dict[str, Any] | None = None,
        target: str = "image",
        crops: float = 0.0,
        crop_sizes: Sequence[int] = (64, 96, 128, 160),
        calibrate: float = 0.0,
        sources: Sequence[str] = (),
        **regions: Any,
    ) -> None:
        super().__init__(distances, sources, **regions)
        self.target = target
        self.crops = crops
        self.crop_sizes = tuple(crop_sizes)
        self.calibrate = calibrate
        self.contrast: InfoNCE | None = MODELS.build(contrast) if contrast else None
        self._check_arguments()
        # without contrast and calibration, nothing would teach the temperature
        self.classifier = TextClassifier(learn_scale=bool(contrast or calibrate))
        self.projection = MODELS.build(projection)
        # distributed training waits for ever for a parameter without a gradient
        if not self.learns:
            self.requires_grad_(False)
        self._register_load_state_dict_pre_hook(rename_old_keys)

    def _check_arguments(self) -> None:
        if self.target not in ("image", "regions"):
            raise ValueError(f"target is 'image' or 'regions', got {self.target!r}")
        if (self.crops or self.target == "regions") and not self.sources:
            raise ValueError(
                f"crops={self.crops} and target={self.target!r} need regions: set "
                "`sources`, e.g. ('truth', 'own')."
            )
        if self.crops and not self.takes_crops:
            raise ValueError(
                "`crops` are embedded by model.global_head; a GlobalDistillation in "
                "model.distill has none."
            )
        if self.calibrate and not self.learns:
            raise ValueError(
                "calibrate teaches the temperature alone: give `distances`, `contrast` "
                "or both as well."
            )
        if self.calibrate and not (self.crops and self.sources[0] == "truth"):
            raise ValueError(
                "calibrate needs crops with labels: set `crops`, and begin `sources` "
                "with 'truth'."
            )

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn from."""
        return bool(self.distances or self.contrast)

    @property
    def needs(self) -> Needs:
        """Whole images or regions, and captions."""
        regions = super().needs
        return Needs(
            images=bool(self.distances) and self.target == "image",
            captions=self.contrast is not None,
            sources=regions.sources,
            scales=regions.scales,
            grids=regions.grids,
        )

    @property
    def loss_names(self) -> list[str]:
        """The terms that :meth:`loss` may return."""
        more = [f"loss_{self.kind}_{name}" for name in ("contrast", "calibration")]
        return [*super().loss_names, *more]

    def embed(self, feats: Sequence[Tensor], filled: Tensor) -> Tensor:
        """Embed images.

        Args:
            feats: L maps (B, C_l, H_l, W_l).
            filled: (B, 2), the part of height and width that is no padding.

        Returns:
            (B, D) unit vectors.
        """
        return self.projection(feats, filled)

    def image_feats(self, student: StudentBatch) -> Sequence[Tensor]:
        """The L maps that images are embedded from."""
        return student.feats

    def loss(self, student: StudentBatch, teacher: TeacherBatch) -> dict[str, Tensor]:
        """Pull image embeddings.

        Raises:
            ValueError: captions are wanted and a sample has none, or crops of a
                student that cannot embed them.
        """
        samples = student.samples
        feats = self.image_feats(student)
        embeds = self.embed(
            feats, filled_part(samples).to(feats[0].device, non_blocking=True)
        )  # (B, D)
        # the teacher's embeddings of the regions (R, D)
        boxes: list[Tensor] = []
        of_regions = embeds.detach()[:0]
        if self.sources:
            boxes = self.pick(student, teacher).split()
            if any(map(len, boxes)):
                of_regions = teacher.crops(boxes, self.scales)
        # captions: InfoNCE over the joint batch
        losses: dict[str, Tensor] = {}
        if self.contrast is not None:
            scale = self.classifier.scale()
            values = [
                self.contrast(embeds, teacher.captions(captions), scale)
                for captions in _captions(samples)
            ]
            losses["loss_global_contrast"] = torch.stack(values).mean()
        # whole images, then crops: what they learn
        targets = [embeds.detach()[:0]]
        if self.distances and self.target == "image":
            targets.append(teacher.images())
        elif self.distances:
            targets.append(_means(of_regions, [len(b) for b in boxes]))
        if self.crops and len(of_regions):
            crops, which = self._embed_crops(boxes, student)
            embeds = torch.cat([embeds, crops])
            targets.append(of_regions[which.to(of_regions.device, non_blocking=True)])
        if self.calibrate:
            # no crops: no labels, but a loss that every process takes part in
            labels, crops_seen = embeds.new_zeros(0).long(), embeds[:0]
            if len(of_regions):
                known = [self.seen_truth(sample).labels for sample in samples]
                labels, crops_seen = labels_of(known, boxes).cpu()[which], crops
                labels = labels.to(crops.device, non_blocking=True)
            value = self._calibration(crops_seen, student.text, labels)
            losses["loss_global_calibration"] = value
        if self.distances:
            target = torch.cat(targets)
            some = target.any(1).float()  # an image without regions has no target
            losses |= self.compare(embeds, target, some)
        return losses

    def _embed_crops(
        self, boxes: Sequence[Tensor], student: StudentBatch
    ) -> tuple[Tensor, Tensor]:
        """Embed some regions as images of their own.

        Args:
            boxes: B tensors (n_b, 4).
            student: says how crops become features.

        Returns:
            (C, D) unit vectors, and the number of each region, in [0, sum n_b), on the
            host.
        """
        features: CropFeatures | None = student.crop_features
        if features is None:
            raise ValueError("`crops` need a student with crop_features: KDEOVDetector")
        # pixels for each of the crop sizes
        height, width = student.samples[0].batch_input_shape
        every, counts = torch.cat([*boxes]), [len(b) for b in boxes]
        budget = self.crops * len(boxes) * height * width / len(self.crop_sizes)
        embeds, which = [], []
        for side in self.crop_sizes:
            # as many crops of this side as the budget of pixels allows
            number = max(round(budget / side**2), 1)
            drawn = torch.randperm(sum(counts))[:number].sort().values
            taken = torch.zeros(sum(counts), dtype=torch.long).index_fill(0, drawn, 1)
            kept = [int(t.sum()) for t in taken.split(counts)]
            chosen = [*every[drawn.to(every.device, non_blocking=True)].split(kept)]
            feats, filled = features(chosen, side)
            embeds.append(self.embed(feats, filled))
            which.append(drawn)
        return torch.cat(embeds), torch.cat(which)

    def _calibration(
        self, crops: Tensor, text: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Cross-entropy of the crops with a label; only the temperature learns."""
        if text is None:
            raise ValueError("calibrate needs a student with words: KDEOVDetector")
        # embeddings are detached, so that only the temperature has a gradient
        logits = self.classifier(crops.detach(), TextEmbeds(text))
        wrong = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        # the mean over the labelled crops of the joint batch
        total, processes = joint_total((labels >= 0).sum())
        return wrong * processes / total.clamp(min=1) * self.calibrate


def _means(embeds: Tensor, counts: Sequence[int]) -> Tensor:
    """(sum n_b, D) -> mean directions (B, D), unit vectors, 0 where n_b is 0."""
    # an image without regions has no mean: nan, then 0
    means = [part.mean(0) for part in embeds.split(list(counts))]
    return F.normalize(torch.stack(means).nan_to_num(), dim=-1)


def labels_of(truths: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """Labels (sum n_b,) of the boxes: the first have the truth's; else -1."""
    # regions begin with the ground truth; others have no label
    pairs = zip(truths, boxes)
    return torch.cat([F.pad(t, (0, len(its) - len(t)), value=-1) for t, its in pairs])


def _captions(samples: SampleList) -> list[list[str]]:
    """The first caption of each sample, the second, and so on."""
    missing = [s.metainfo.get("img_id") for s in samples if "caption" not in s.metainfo]
    if missing:
        raise ValueError(
            f"images {missing[:5]} come without a caption: put LoadCaptions into "
            "the training pipeline, and end it with PackInputs."
        )
    given = [s.metainfo["caption"] for s in samples]
    each = [[own] if isinstance(own, str) else [*own] for own in given]
    return [list(captions) for captions in zip(*each, strict=True)]
