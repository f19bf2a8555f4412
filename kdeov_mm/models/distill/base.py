"""The contract of distillation: what student and teacher say of a batch, compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ...clip.teacher_batch import TeacherBatch
from .losses import Anchors

# B tensors (n_b, 4) of boxes -> embeddings of what is there, (sum n_b, D)
BoxEmbeds: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
# B tensors (n_b, 4) of boxes and a side in pixels -> feature maps of the crops, and
# the part of each that is no padding, (sum n_b, 2)
CropFeatures: TypeAlias = Callable[
    [Sequence[Tensor], int], tuple[Sequence[Tensor], Tensor]
]


class RegionEmbeds(NamedTuple):
    """Regions of each image: the N locations of a YOLO, or proposals.

    Attributes:
        embeds: (B, N, D), with gradient; None where the student embeds any box
            (``StudentBatch.embed_boxes``).
        boxes: (B, N, 4), xyxy in pixels of the padded input, detached.
        sharpness: (B, N) in [0, 1], detached: how sure it is that there is an object,
            whatever its class. Of a YOLO the mean over the four sides of the largest
            probability of the box distribution, high where edges are found; of
            proposals their objectness, 0 for those that fill up a batch.
        centres: (N, 2), xy in pixels, of locations; None for proposals.
        unlabelled: (B, N) bool, all False at first: a distillation marks the regions
            of objects that nobody labelled, which the class loss then does not take for
            background; None where there is no such loss.
    """

    embeds: Tensor | None
    boxes: Tensor
    sharpness: Tensor
    centres: Tensor | None
    unlabelled: Tensor | None = None


class StudentBatch(NamedTuple):
    """What a student says of a batch.

    Attributes:
        feats: L maps (B, C_l, H_l, W_l), after fusion with the words.
        samples: B samples.
        text: (K, D) unit vectors of the classes that the labels index; or None.
        regions: embeddings of regions; None for students without.
        image_feats: the maps before fusion; None: ``feats``.
        crop_features: features of crops as images of their own; or None.
        progress: the part of the training that is done, in [0, 1].
        embed_boxes: embeddings of any boxes; None for students that embed their own
            regions alone.
    """

    feats: Sequence[Tensor]
    samples: SampleList
    text: Tensor | None = None
    regions: RegionEmbeds | None = None
    image_feats: Sequence[Tensor] | None = None
    crop_features: CropFeatures | None = None
    progress: float = 1.0
    embed_boxes: BoxEmbeds | None = None


def embeds_of_locations(student: StudentBatch, name: str) -> Tensor:
    """The embeddings (B, N, D) of a one-stage student's locations.

    Args:
        student: what it says of a batch.
        name: of the distillation that needs them.

    Raises:
        ValueError: it has none.
    """
    if student.regions is None or student.regions.embeds is None:
        raise ValueError(
            f"{name} needs a student with locations, a KDEOVDetector: leave it out of "
            "model.distill."
        )
    return student.regions.embeds


@dataclass(frozen=True)
class Needs:
    """What a distillation asks of its teacher.

    Attributes:
        images: embeddings of whole images.
        dense: dense maps of patches.
        captions: embeddings of one caption per image.
        sources: where the boxes of its crops come from, names of ``regions.SOURCES``.
        scales: sizes of the crops relative to the boxes.
        grids: tiles per side, of the source ``blocks``.
        window: side in pixels of crops on a grid; None for no such crops.
        stride: pixels between those.
        apart: the crops of each scale are asked for by themselves.
    """

    images: bool = False
    dense: bool = False
    captions: bool = False
    sources: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    grids: tuple[int, ...] = ()
    window: int | None = None
    stride: int | None = None
    apart: bool = False

    @property
    def crops(self) -> bool:
        """Whether it needs embeddings of crops."""
        return bool(self.sources or self.window)

    @property
    def moving(self) -> tuple[str, ...]:
        """The sources whose boxes change from step to step: no store has them."""
        return tuple(s for s in self.sources if s in ("own", "random"))


class Distillation(nn.Module):
    """A loss between what the student and what the teacher says of a batch.

    A subclass sets ``kind`` and ``needs``, and implements :meth:`loss` with
    :meth:`compare`. Its losses are named ``loss_<kind>_<distance>``.

    Args:
        distances: name -> config of a distance in ``losses.py``.
    """

    kind: str = ""

    def __init__(self, distances: dict[str, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in (distances or {}).items()}
        )

    @property
    def needs(self) -> Needs:
        """What the teacher has to answer."""
        raise NotImplementedError

    @property
    def loss_names(self) -> list[str]:
        """The terms that :meth:`loss` may return."""
        return [f"loss_{self.kind}_{name}" for name in self.distances]

    def fixed_boxes(self, sample: DetDataSample) -> Tensor:
        """Boxes (n, 4) whose crops are needed each time that an image is seen."""
        return sample.gt_instances.bboxes[:0]

    def loss(self, student: StudentBatch, teacher: TeacherBatch) -> dict[str, Tensor]:
        """Named losses of a batch; scalars."""
        raise NotImplementedError

    def compare(
        self,
        embeds: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        which: Tensor | None = None,
        text: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted mean of each distance, times its loss weight.

        It is the mean over the joint batch of all processes.

        Args:
            embeds: the student's (N, D), any length.
            targets: the teacher's unit vectors (M, D).
            weights: (N,), any sum; None: all the same. Those of weight 0 do not count.
            which: (N,) the target of each embedding; None: M = N, each its own.
            text: (K, D) unit vectors of the words; None where there are none.
        """
        if weights is None:
            weights = targets.new_ones(len(embeds))
        if which is None:
            which = torch.arange(len(embeds), device=weights.device)
        counts = torch.zeros_like(targets[:, 0]).index_add(
            0, which, (weights > 0).to(targets)
        )
        anchors = Anchors(targets, counts, which, text)
        # gradients are averaged over processes: each takes its part of the joint mean
        total, processes = joint_total(weights.sum())
        weights = weights / (total / processes).clamp(min=1e-6)
        losses = {}
        for name, distance in self.distances.items():
            # of no embeddings it is 0, with the gradient that every process needs
            loss = (distance(embeds, targets[which], anchors) * weights).sum()
            weight: Any = distance.loss_weight
            losses[f"loss_{self.kind}_{name}"] = loss * weight
        return losses


def joint_total(value: Tensor) -> tuple[Tensor, int]:
    """The sum of a scalar over all processes, and their number."""
    processes = get_world_size()
    if processes > 1:
        value = value.detach().clone()
        all_reduce(value)
    return value, processes
