"""One embedding per image: classification, retrieval, and how it is learnt."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.dist import get_world_size
from torch import Tensor, nn

from .distill.losses import InfoNCE, initial_log_scale, inverse_temperature
from .distill.regions import RegionPicker

# B tensors (n_b, 4) of boxes, and a side in pixels -> feature maps of the crops, and
# the part of each that is no padding, (sum n_b, 2)
Crops = Callable[[Sequence[Tensor], int], tuple[Sequence[Tensor], Tensor]]


# the second name is for `distill`, whose heads are left aside at test time
@MODELS.register_module(name=["GlobalHead", "GlobalDistillation"])
class GlobalHead(RegionPicker):
    """Whole images in CLIP's space: the second mouth of the student.

    An image's embedding is pulled to the teacher's (``distances``), to its caption's
    (``contrast``), or to both: the FeatureAlignment loss of the original KDEOV design.
    With ``crops`` the student also sees regions of its images as images of their own:
    a scene's embedding is a mixture of its objects, and does not teach to name one.

    Args:
        projection: config of :class:`GlobalProjection`.
        distances: name -> config of a distance in ``losses.py``, to the teacher's
            embedding.
        contrast: config of :class:`InfoNCE` against one caption per image
            (transform ``LoadCaptions``); None for none.
        target: what the teacher says of an image: ``'image'``, its embedding of the
            whole, or ``'regions'``, the mean over the regions, renormalised (for a
            teacher that knows objects, not scenes).
        crops: regions per image that the student sees as images, drawn at random from
            the batch, at the cost of as many whole images: of smaller ones, more.
        crop_sizes: sides of the crops in pixels, multiples of the largest stride; each
            has the same share of the cost.
        calibrate: factor of the cross-entropy of the crops with a label among the words
            of the step, by which the temperature learns, and nothing else.
        sources, regions: arguments of :class:`RegionPicker`; no regions by default.
    """

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
        super().__init__(sources, **regions)
        if target not in ("image", "regions"):
            raise ValueError(f"target is 'image' or 'regions', got {target!r}")
        if (crops or target == "regions") and not self.sources:
            raise ValueError(
                f"crops={crops} and target={target!r} need regions: set `sources`, "
                "e.g. ('truth', 'own')."
            )
        if calibrate and not (distances or contrast):
            raise ValueError(
                "calibrate teaches the temperature alone: give `distances`, `contrast` "
                "or both as well."
            )
        if calibrate and not (crops and self.sources[0] == "truth"):
            raise ValueError(
                "calibrate needs crops with labels: set `crops`, and begin `sources` "
                "with 'truth'."
            )
        self.projection = MODELS.build(projection)
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in (distances or {}).items()}
        )
        self.contrast: InfoNCE | None = MODELS.build(contrast) if contrast else None
        self.log_scale: Tensor
        if contrast or calibrate:
            self.log_scale = nn.Parameter(initial_log_scale())
        else:  # nothing would teach it
            self.register_buffer("log_scale", initial_log_scale())
        self.target = target
        self.crops = crops
        self.crop_sizes = tuple(crop_sizes)
        self.calibrate = calibrate

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn from."""
        return bool(self.distances or self.contrast)

    def embed(self, feats: Sequence[Tensor], filled: Tensor) -> Tensor:
        """Embed images.

        Args:
            feats: L maps (B, C_l, H_l, W_l).
            filled: (B, 2), the part of height and width that is no padding.

        Returns:
            (B, D) unit vectors.
        """
        return self.projection(feats, filled)

    def logits(self, embeds: Tensor, text: Tensor) -> Tensor:
        """Unit vectors (B, D) and (K, D) -> cosines by the temperature (B, K)."""
        return inverse_temperature(self.log_scale) * embeds @ text.T

    def loss(
        self,
        feats: Sequence[Tensor],
        text: Tensor | None,
        teacher: Any,
        pixels: Tensor,
        samples: SampleList,
        locations: Any = None,
        see: Any = None,
    ) -> dict[str, Tensor]:
        """Pull image embeddings.

        Args:
            feats: L maps (B, C_l, H_l, W_l), without the words' influence.
            text: (K, D) words; the labels of the samples index them. Needed by
                ``calibrate``.
            teacher: :class:`kdeov_mm.clip.CLIPImageTeacher`.
            pixels: (B, 3, H, W), RGB in [0, 1], the padded input.
            samples: B samples.
            locations: :class:`Locations`, what the detection head says; needed by own
                boxes.
            see: :data:`Crops`, the student's features of crops; needed by ``crops``.

        Raises:
            ValueError: captions are wanted and a sample has none, or crops where they
                cannot be seen.
        """
        embeds = self.embed(feats, filled_part(samples).to(feats[0].device))
        targets, losses = [], {}
        if self.crops and see is None:
            raise ValueError(
                "`crops` are seen by model.global_head; a GlobalDistillation in "
                "model.distill has none."
            )
        if self.sources:
            self.steps += 1
            regions = self.regions(samples, locations, teacher)
            told = embeds.new_zeros(0, embeds.shape[1])
            if any(map(len, regions)):
                told = teacher.embed_crops(pixels, regions, self.scales)
        if self.distances:
            if self.target == "image":
                shapes = [s.img_shape for s in samples]
                targets = [teacher.embed_images(pixels, shapes)]
            else:
                targets = [_means(told, [len(r) for r in regions])]
        if self.contrast is not None:
            captions = teacher.embed_captions(_captions(samples), embeds.device)
            losses["contrast"] = self.contrast(embeds, captions, self.log_scale)
        if self.crops and len(told):
            area = pixels.shape[-2] * pixels.shape[-1]
            crops, which = self._embed_crops(regions, see, area)
            embeds = torch.cat([embeds, crops])
            targets.append(told[which])
            if self.calibrate:
                labels = _labels(samples, regions)[which]
                losses["calibration"] = self._calibration(crops, text, labels)
        elif self.calibrate:
            losses["calibration"] = self.log_scale * 0
        for name, distance in self.distances.items():
            target = torch.cat(targets)
            there = target.any(1)  # an image without regions has no target
            apart = (embeds * 0).sum()
            if there.any():
                apart = distance(embeds[there], target[there]).sum()
            weight: Any = distance.loss_weight
            losses[name] = apart * weight / len(target)
        # mmyolo's losses are sums over the joint batch: keep the balance with them
        factor = len(samples) * get_world_size()
        return {f"loss_global_{name}": loss * factor for name, loss in losses.items()}

    def _embed_crops(
        self, regions: Sequence[Tensor], see: Crops, area: int
    ) -> tuple[Tensor, Tensor]:
        """Some regions as images of their own.

        Args:
            regions: B tensors (n_b, 4).
            see: the student's features of crops.
            area: pixels of an image of the batch.

        Returns:
            (C, D) unit vectors, and the number of each region, in [0, sum n_b).
        """
        counts = [len(r) for r in regions]
        budget = self.crops * len(regions) * area / len(self.crop_sizes)
        embeds, which = [], []
        for side in self.crop_sizes:
            number = max(round(budget / side**2), 1)
            drawn = torch.randperm(sum(counts))[:number].sort().values
            taken = torch.zeros(sum(counts), dtype=torch.bool)
            taken[drawn] = True
            boxes = [r[t.to(r.device)] for r, t in zip(regions, taken.split(counts))]
            feats, filled = see(boxes, side)
            embeds.append(self.embed(feats, filled))
            which.append(drawn.to(filled.device))
        return torch.cat(embeds), torch.cat(which)

    def _calibration(self, crops: Tensor, text: Any, labels: Tensor) -> Tensor:
        """Cross-entropy of the crops with a label; only the temperature learns."""
        logits = self.logits(crops.detach(), text)
        wrong = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return wrong / (labels >= 0).sum().clamp(min=1) * self.calibrate


def filled_part(samples: SampleList) -> Tensor:
    """The part of height and width of each input that is no padding: (B, 2).

    All of it, for samples that do not say how they were padded.
    """
    filled = torch.ones(len(samples), 2)
    for row, sample in zip(filled, samples):
        if "batch_input_shape" in sample:
            sizes = zip(sample.img_shape, sample.batch_input_shape)
            row.copy_(torch.tensor([part / whole for part, whole in sizes]))
    return filled


def _means(embeds: Tensor, counts: Sequence[int]) -> Tensor:
    """(sum n_b, D) -> mean directions (B, D), unit vectors, 0 where n_b is 0."""
    means = [part.mean(0) for part in embeds.split(list(counts))]
    return F.normalize(torch.stack(means).nan_to_num(), dim=-1)


def _labels(samples: SampleList, regions: Sequence[Tensor]) -> Tensor:
    """Labels (sum n_b,) of the regions, of which the first are the truth; else -1."""
    labels = []
    for sample, boxes in zip(samples, regions):
        known = sample.gt_instances.labels
        labels.append(F.pad(known, (0, len(boxes) - len(known)), value=-1))
    return torch.cat(labels)


def _captions(samples: SampleList) -> list[str]:
    missing = [s.metainfo.get("img_id") for s in samples if "caption" not in s.metainfo]
    if missing:
        raise ValueError(
            f"images {missing[:5]} come without a caption: put LoadCaptions into "
            "the training pipeline and 'caption' into meta_keys of PackDetInputs."
        )
    return [s.metainfo["caption"] for s in samples]
