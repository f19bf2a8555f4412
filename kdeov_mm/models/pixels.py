"""What a training with a teacher needs: one CLIP, its pixels, crops of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_dims(global_head: Any, clip_dims: int) -> None:
    """Whether a global head speaks in the dimensions of the CLIP.

    Raises:
        ValueError: it does not.
    """
    head_dims = global_head.projection.embed_dims
    if head_dims != clip_dims:
        raise ValueError(
            f"the CLIP of model.text_encoder has {clip_dims} dimensions, "
            f"model.global_head.projection.embed_dims is {head_dims}: set it to "
            f"{clip_dims}."
        )


def check_teacher(model: Any, heads: Mapping[str, Any]) -> None:
    """Whether a student's teacher suits its words, its pixels, and what its heads ask.

    Args:
        model: a student with ``teacher``, ``text_encoder``, ``data_preprocessor``.
        heads: those that ask the teacher, by name.

    Raises:
        ValueError: what does not go together, and what to set.
    """
    if model.teacher is None:
        raise ValueError(
            f"{list(heads)} learn from a teacher: they need a `teacher` in the model "
            "config"
        )
    words = model.text_encoder.source
    if model.teacher.source != words:
        raise ValueError(
            f"the teacher is {model.teacher.source}, but the words are those of "
            f"{words}: give model.teacher and model.text_encoder the same "
            "`model` and `pretrained`."
        )
    if model.teacher.sees_pixels and any(
        "stored" in getattr(head, "sources", ()) for head in heads.values()
    ):
        raise ValueError(
            "'stored' boxes come from a store: use model.teacher.type="
            "'CachedTeacher', or take 'stored' out of the heads' `sources`."
        )
    if not getattr(model.data_preprocessor, "_channel_conversion", False):
        raise ValueError(
            "the teacher sees RGB: it needs data_preprocessor=dict("
            "type='DetDataPreprocessor', bgr_to_rgb=True, ...)"
        )


def undo_normalisation(
    preprocessor: Any, inputs: Tensor, shapes: Sequence[tuple[int, ...]]
) -> Tensor:
    """The pixels of a student's input, for the teacher.

    Args:
        preprocessor: the student's.
        inputs: (B, 3, H, W), as the student sees them.
        shapes: height and width of each image without its padding.

    Returns:
        (B, 3, H, W), RGB in [0, 1], the padding black.
    """
    pixels = inputs
    if preprocessor._enable_normalize:
        pixels = pixels * preprocessor.std + preprocessor.mean
    pixels = pixels / 255
    for image, (height, width, *_) in zip(pixels, shapes):
        image[:, height:] = 0
        image[..., width:] = 0
    return pixels


def crop_to_fit(
    images: Tensor, boxes: Sequence[Tensor], side: int
) -> tuple[Tensor, Tensor]:
    """Cut boxes out and fit them into squares, as the pipelines do.

    The proportions stay; what is left at the right or below is 0.

    Args:
        images: (B, 3, H, W), normalised.
        boxes: B tensors (n_b, 4), xyxy in pixels of ``images``; whole pixels are cut,
            at least one.
        side: of the squares, in pixels.

    Returns:
        (sum n_b, 3, side, side), and the part of height and width that a crop fills,
        (sum n_b, 2).
    """
    height, width = images.shape[-2:]
    crops, filled = [], []
    for image, its in zip(images, boxes):
        for x1, y1, x2, y2 in its.round().long().tolist():
            x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            part = image[None, :, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
            factor = side / max(part.shape[2:])
            size = [max(round(n * factor), 1) for n in part.shape[2:]]
            part = F.interpolate(part, size, mode="bilinear", align_corners=False)
            crops.append(F.pad(part[0], (0, side - size[1], 0, side - size[0])))
            filled.append([size[0] / side, size[1] / side])
    stacked = torch.stack(crops).contiguous(memory_format=torch.channels_last)
    return stacked, images.new_tensor(filled)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms use their running statistics, and leave them as they are."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Neither gradients nor statistics change."""
    with torch.no_grad(), frozen_statistics(model):
        yield
