"""Feature alignment of the original KDEOV design: its losses, and a short training."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from ..border import real_number, whole_number
from ..checkpoints import check_device
from ..models import CosineDistance, InfoNCE, L2Distance
from .tensor_model import TensorModel, Texts, choose

DISTANCES = {"cosine": CosineDistance, "l2": L2Distance}


class DistillationLoss(nn.Module):
    """Mean distance of the student's image embeddings to the teacher's.

    Args:
        loss_type: ``'cosine'``, 1 - cosine; or ``'l2'``, the squared distance of unit
            vectors, summed over the D dimensions: D times their mean squared error.
    """

    def __init__(self, loss_type: str = "cosine") -> None:
        super().__init__()
        self.distance = choose("loss_type", loss_type, DISTANCES)()

    def forward(self, student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
        """Embeddings (B, D) and (B, D), of any length -> scalar.

        Raises:
            ValueError: other shapes, or no floats.
        """
        _check_embeddings(student_embeddings, teacher_embeddings)
        unit = F.normalize(teacher_embeddings.float(), dim=-1)
        return self.distance(student_embeddings, unit).mean()


class CrossModalAlignmentLoss(nn.Module):
    """:class:`InfoNCE` of images and their texts, in both directions.

    Equal texts are no negatives of each other.

    Args:
        temperature: of the softmax, where the model's own is not given.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = real_number("temperature", temperature, 0, 1e3, "({}, {}]")
        self.contrast = InfoNCE()

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, D) of images and of the text of each -> scalar.

        Args:
            image_embeddings: of any length.
            text_embeddings: of any length.
            scale: inverse temperature, ``exp(logit_scale)``; None: ``1 / temperature``.

        Raises:
            ValueError: not one text for each image.
        """
        _check_embeddings(image_embeddings, text_embeddings)
        if scale is None:
            scale = image_embeddings.new_tensor(1 / self.temperature)
        elif not isinstance(scale, Tensor) or scale.numel() != 1 or not scale > 0:
            raise ValueError(f"expected a scale above 0, one number, got {scale!r:.80}")
        images = F.normalize(image_embeddings.float(), dim=-1)
        return self.contrast(
            images, F.normalize(text_embeddings.float(), dim=-1), scale
        )


class FeatureAlignmentLoss(nn.Module):
    """Distillation and cross-modal alignment together.

    Args:
        distillation_weight, alignment_weight: factors of both.
        distillation_type: see :class:`DistillationLoss`.
        temperature: see :class:`CrossModalAlignmentLoss`.
    """

    def __init__(
        self,
        distillation_weight: float = 1.0,
        alignment_weight: float = 1.0,
        distillation_type: str = "cosine",
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.distillation_weight = real_number(
            "distillation_weight", distillation_weight, 0, 1e9
        )
        self.alignment_weight = real_number(
            "alignment_weight", alignment_weight, 0, 1e9
        )
        self.distillation_loss = DistillationLoss(distillation_type)
        self.alignment_loss = CrossModalAlignmentLoss(temperature)

    def forward(
        self,
        student_image_embeddings: Tensor,
        teacher_image_embeddings: Tensor,
        text_embeddings: Tensor,
        scale: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Embeddings (B, D) of images, twice, and of their texts -> named scalars.

        Returns:
            ``total_loss``, the weighted sum of ``distillation_loss`` and
            ``alignment_loss``.
        """
        student = student_image_embeddings
        distillation = self.distillation_loss(student, teacher_image_embeddings)
        alignment = self.alignment_loss(student, text_embeddings, scale)
        total = (
            self.distillation_weight * distillation + self.alignment_weight * alignment
        )
        return dict(
            total_loss=total, distillation_loss=distillation, alignment_loss=alignment
        )


def _check_embeddings(images: Any, others: Any) -> None:
    """Refuse what are no two times embeddings (B, D), one for each image."""
    both = (images, others)
    good = all(isinstance(t, Tensor) and t.is_floating_point() for t in both)
    if not good or images.ndim != 2 or images.shape != others.shape or not len(images):
        got = [tuple(t.shape) if isinstance(t, Tensor) else t for t in both]
        raise ValueError(
            "expected embeddings (B, D) of images, and as many of teacher or texts, "
            f"one text for each image, got {got[0]!r:.80} and {got[1]!r:.80}"
        )
    if not (images.isfinite().all() and others.isfinite().all()):
        raise FloatingPointError(
            "embeddings have numbers that are not finite: lower learning_rate, or look "
            "for such images."
        )


def _check(model: Any, dataloader: Any, loss: Any) -> None:
    """ValueError where an argument is of another kind."""
    if not isinstance(model, TensorModel):
        raise ValueError(
            "expected a KDEOVModel, or a model of create_clip_model, got a "
            f"{type(model).__name__}"
        )
    if not isinstance(loss, FeatureAlignmentLoss | None):
        raise ValueError(f"expected a FeatureAlignmentLoss, got {loss!r:.80}")
    if not isinstance(dataloader, Iterable):
        raise ValueError(f"expected a dataloader of batches, got {dataloader!r:.80}")


def train_feature_alignment(
    model: TensorModel,
    dataloader: Iterable[tuple[Tensor, Texts]],
    num_epochs: int = 10,
    learning_rate: float = 1e-4,
    device: str | torch.device | None = None,
    loss: FeatureAlignmentLoss | None = None,
) -> list[float]:
    """Train the embeddings of images: backbone, neck and global head.

    AdamW, gradients clipped to a norm of 1. Spatial projection, boxes and fusion do not
    learn, and there is no schedule, no checkpoint and no evaluation. Real trainings are
    ``tools/train.py configs/kdeov/ablations/feature_alignment.py``, whose lines stand
    for the arguments here: ``train_dataloader``; ``train_cfg.max_iters`` for
    ``num_epochs``; ``optim_wrapper.optimizer.lr``; and for ``loss`` the ``loss_weight``
    of the distance and the contrast in ``model.distill.image``.

    Args:
        model: a :class:`KDEOVModel`, or one of :func:`create_clip_model`; it is trained
            in place, and keeps its mode.
        dataloader: batches of images (B, 3, H, W) and B texts, sentences or tokens.
        num_epochs: times that all batches are seen.
        learning_rate: AdamW's.
        device: where the model is moved to; None: where it is.
        loss: weights and kind of distance; None: those by default.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: no batches, or not one text for each image.
        FloatingPointError: a loss is not finite; its step is not taken.
    """
    _check(model, dataloader, loss)
    num_epochs = whole_number("num_epochs", num_epochs)
    learning_rate = real_number("learning_rate", learning_rate, 0, 1e3)
    if device is not None:
        check_device(device)
    student = model.to(device).student
    parts = (student.backbone, student.neck, student.global_head)
    weights = [p for part in parts if part is not None for p in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.025)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
    criterion = FeatureAlignmentLoss() if loss is None else loss
    means: list[float] = []
    was_training = model.training
    model.train()
    try:
        for epoch in range(num_epochs):
            values = [_step(model, batch, criterion, wrapper) for batch in dataloader]
            if not values:
                raise ValueError("the dataloader gave no batches: nothing to learn.")
            means.append(sum(values) / len(values))
            print_log(f"epoch {epoch + 1}: loss {means[-1]:.4f}", "current")
    finally:
        model.train(was_training)
    return means


def _step(
    model: TensorModel, batch: Any, loss: FeatureAlignmentLoss, wrapper: OptimWrapper
) -> float:
    """One batch of images and texts: the loss, of which the weights take a step."""
    if not isinstance(batch, (list, tuple)) or len(batch) != 2:
        raise ValueError(f"expected batches (images, texts), got {batch!r:.80}")
    images, texts = batch
    total = loss(
        model.encode_image(images),
        model.teacher_features(images),
        model.encode_text(texts),
        model.student.global_head.classifier.scale(),
    )["total_loss"]
    if not total.isfinite():
        raise FloatingPointError(
            f"the loss is {total.item()}: lower learning_rate, or look for images with "
            "numbers that are not finite."
        )
    wrapper.zero_grad()
    wrapper.update_params(total)
    return total.item()
