"""Distances between student and teacher embeddings: (N, D), (N, D) -> (N,).

And InfoNCE between images and captions, over the joint batch of all processes.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor, nn


class Anchors(NamedTuple):
    """What the rows of a batch are compared with: the teacher's, each once.

    Attributes:
        rows: (A, D) unit vectors.
        counts: (A,) how many rows of the batch have it.
        which: (N,) that of each row.
        text: (K, D) unit vectors of the words of the step; None where there are none.
    """

    rows: Tensor
    counts: Tensor
    which: Tensor
    text: Tensor | None = None


class Distance(nn.Module):
    """What the distances share: a factor, kept beside the value.

    Args:
        loss_weight: factor of the loss made of this distance.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight


@MODELS.register_module()
class CosineDistance(Distance):
    """1 - cosine: 0 when the directions are equal, 2 when opposite."""

    def forward(
        self, student: Tensor, teacher: Tensor, anchors: Anchors | None = None
    ) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        return 1 - F.cosine_similarity(student.float(), teacher, dim=-1)


@MODELS.register_module()
class L2Distance(Distance):
    """Squared Euclidean distance of unit vectors; equals 2 * (1 - cosine)."""

    def forward(
        self, student: Tensor, teacher: Tensor, anchors: Anchors | None = None
    ) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        # both have length 1
        unit = F.normalize(student.float(), dim=-1)
        return (unit - teacher).square().sum(-1)


@MODELS.register_module()
class L1Distance(Distance):
    """L1 distance of unit vectors, ViLD's (Gu et al., 2021, section 3.3)."""

    def forward(
        self, student: Tensor, teacher: Tensor, anchors: Anchors | None = None
    ) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        unit = F.normalize(student.float(), dim=-1)
        return (unit - teacher).abs().sum(-1)


@MODELS.register_module()
class RelationalDistance(Distance):
    """KL divergence between the teacher's and the student's similarities.

    Each student embedding is compared with the teacher's of the whole batch;
    the wanted distribution is the one of the teacher's own embedding there, so
    two regions that look the same are no negatives. All embeddings of a CLIP
    share a direction, which a cosine alone is content with; this is not.
    After "Relational Knowledge Distillation" (Park et al., 2019), in the
    softened form of SEED (Fang et al., 2021).

    Args:
        loss_weight: factor of the loss made of this distance.
        temperature: of both distributions.
    """

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.05) -> None:
        super().__init__(loss_weight)
        self.temperature = temperature

    def forward(
        self, student: Tensor, teacher: Tensor, anchors: Anchors | None = None
    ) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        with torch.autocast(student.device.type, enabled=False):
            unit = F.normalize(student.float(), dim=-1)
            everyone, share, which = joint_anchors(teacher.detach(), anchors)
            # similarities to all regions of the joint batch: (N, A)
            logits = unit @ everyone.T / self.temperature + share
            wanted = everyone @ everyone.T / self.temperature + share
            # KL divergence from the teacher's distribution
            student_log = logits.log_softmax(-1)
            teacher_log = wanted.log_softmax(-1)[which]
            return F.kl_div(
                student_log, teacher_log, reduction="none", log_target=True
            ).sum(-1)


@MODELS.register_module()
class WordDistance(Distance):
    """KL divergence between what teacher and student take a region for, in words.

    Both embeddings become distributions over the words of the step, as in "Distilling
    the Knowledge in a Neural Network" (Hinton et al., 2015). What a teacher's embedding
    holds beside the words (its crop's size, light and surroundings) is not learnt, and
    where the teacher is unsure, so may the student be.

    Args:
        loss_weight: factor of the loss made of this distance.
        temperature: of both distributions.
    """

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.05) -> None:
        super().__init__(loss_weight)
        self.temperature = temperature

    def forward(
        self, student: Tensor, teacher: Tensor, anchors: Anchors | None = None
    ) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,).

        Raises:
            ValueError: there are no words.
        """
        if anchors is None or anchors.text is None:
            raise ValueError(
                "WordDistance compares distributions over words, and this loss has "
                "none: use it in RegionDistillation of a student that scores words."
            )
        with torch.autocast(student.device.type, enabled=False):
            text = anchors.text.float().T / self.temperature
            found = (F.normalize(student.float(), dim=-1) @ text).log_softmax(-1)
            wanted = (teacher @ text).log_softmax(-1)
            return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


@MODELS.register_module()
class ContrastiveDistance(Distance):
    """Which region is it: InfoNCE among the regions of the batch.

    -log of the share that the student gives to its own region, of all regions
    of the batch (van den Oord et al., 2018). Regions that look the same to the
    teacher are no negatives: they count as the own one.

    Args:
        loss_weight: factor of the loss made of this distance.
        temperature: of the softmax over regions.
        same: teacher embeddings with a cosine above this are one region.
    """

    def __init__(
        self, loss_weight: float = 1.0, temperature: float = 0.07, same: float = 0.98
    ) -> None:
        super().__init__(loss_weight)
        self.temperature = temperature
        self.same = same

    def forward(
        self, student: Tensor, teacher: Tensor, anchors: Anchors | None = None
    ) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        with torch.autocast(student.device.type, enabled=False):
            unit = F.normalize(student.float(), dim=-1)
            # the share of each region of the joint batch: (N, A)
            everyone, share, which = joint_anchors(teacher, anchors)
            logits = (unit @ everyone.T / self.temperature + share).log_softmax(-1)
            # regions that look the same to the teacher are positives, too
            own = teacher @ everyone.T > self.same
            own = own.scatter(1, which[:, None], True)
            return -_log_share(logits, own)


@MODELS.register_module()
class InfoNCE(nn.Module):
    """CLIP's contrastive loss of images and captions, with several positives.

    Radford et al., 2021, section 2.3. Images whose captions are equal are no
    negatives of each other.
    The batch is the joint one of all processes, gathered with gradient, so the
    loss is the same on each of them.

    Args:
        loss_weight: factor of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, images: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
        """Unit vectors (B, D) of images and of their captions, and the inverse
        temperature -> scalar."""
        with torch.autocast(images.device.type, enabled=False):
            images, captions = gathered(images.float()), gathered(captions.float())
            logits = scale * images @ captions.T
            # equal captions are positives of each other
            own = captions @ captions.T > 1 - 1e-4
            own.fill_diagonal_(True)
            # image to text, and text to image
            share = _log_share(logits.log_softmax(1), own)
            share = share + _log_share(logits.T.log_softmax(1), own)
            return -share.mean() / 2 * self.loss_weight


def joint_anchors(
    teacher: Tensor, anchors: Anchors | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The anchors of all processes.

    Args:
        teacher: rows (N, D) of this process.
        anchors: its own; None: its rows.

    Returns:
        Vectors (A, D), the logarithms of their counts (A,), and the anchor of each row
        of this process, (N,).
    """
    if anchors is None:
        which = torch.arange(len(teacher), device=teacher.device)
        anchors = Anchors(teacher, torch.ones_like(teacher[:, 0]), which)
    rows = anchors.rows if teacher.requires_grad else anchors.rows.detach()
    joined = torch.cat([rows, anchors.counts[:, None]], 1)
    everyone, first = joint_rows(joined)
    # what nobody has is as good as absent
    share = everyone[:, -1].detach().clamp(min=1e-30).log()
    return everyone[:, :-1], share, anchors.which + first


def joint_rows(rows: Tensor) -> tuple[Tensor, int]:
    """(n, D) of this process -> (sum of n, D) of all, and the first that is its own.

    With gradient where the rows have one; n may differ.
    """
    if get_world_size() == 1:
        return rows, 0
    # all rows in tensors of one size, then without what filled them up
    counts = [int(n) for n in all_gather(torch.tensor(len(rows), device=rows.device))]
    # where the rows of one process have a gradient, those of all take part in it
    learns = torch.tensor(float(rows.requires_grad), device=rows.device)
    all_reduce(learns, "max")
    if learns and not rows.requires_grad:
        rows = rows.detach().requires_grad_()
    filled = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
    gather = dist_functional.all_gather if learns else all_gather
    parts = [part[:n] for part, n in zip(gather(filled.contiguous()), counts)]
    return torch.cat(parts), sum(counts[: get_rank()])


def gathered(embeds: Tensor) -> Tensor:
    """(n, D) of this process -> (sum of n, D) of all processes, with gradient."""
    if get_world_size() == 1:
        return embeds
    return torch.cat(dist_functional.all_gather(embeds.contiguous()))


def _log_share(log_probabilities: Tensor, own: Tensor) -> Tensor:
    """Log of the probability on the own entries: (N, M), bool (N, M) -> (N,)."""
    return log_probabilities.masked_fill(~own, -math.inf).logsumexp(-1)
