"""Padding of a batch, crops as images, and norms that stay as they are."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from mmdet.structures import SampleList
from torch import Tensor, nn

T = TypeVar("T")


def filled_part(samples: SampleList, size: Sequence[int] | None = None) -> Tensor:
    """The part of height and width of each input that is no padding: (B, 2).

    Args:
        samples: B samples; one that does not say how it was padded was not.
        size: height and width of the inputs; None: those of the samples' batch.
    """
    filled = [[1.0, 1.0] for _ in samples]
    for row, sample in zip(filled, samples):
        # padding is at the right and the bottom
        if "batch_input_shape" in sample:
            sizes = zip(sample.img_shape, size or sample.batch_input_shape)
            row[:] = [part / whole for part, whole in sizes]
    return torch.tensor(filled)


def as_weights(module: nn.Module, images: Tensor) -> Tensor:
    """Images in the precision of a module's weights: half after ``model.half()``."""
    return images.to(next(module.parameters()).dtype)


def as_if_alone(
    inputs: Tensor,
    samples: SampleList,
    ask: Callable[[Tensor, SampleList], Iterable[T]],
) -> list[T]:
    """Answers for each image that do not depend on the others of its batch.

    A batch is padded to its largest image, and what a network says near the border of
    a smaller one would depend on how much padding follows. So images pass in groups
    of one padded shape, without what others added.

    Args:
        inputs: (B, 3, H, W), padded at the right and the bottom.
        samples: B samples; ``pad_shape`` is the shape that mmdet's preprocessor would
            pad an image to alone, all of the input where it is missing.
        ask: n images (n, 3, h, w) of one padded shape and their samples -> n answers.
    """
    # padded shape -> numbers of the images
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        shape = sample.metainfo.get("pad_shape", inputs.shape[-2:])
        groups.setdefault(tuple(shape[:2]), []).append(i)
    answers: dict[int, T] = {}
    for (height, width), which in groups.items():
        part = inputs if len(which) == len(inputs) else inputs[which]
        replies = ask(part[..., :height, :width], [samples[i] for i in which])
        answers.update(zip(which, replies))
    return [answers[i] for i in range(len(samples))]


def in_image(filled: Tensor, size: Sequence[int]) -> Tensor:
    """Which locations of a map have their centre in the image; at least the first.

    Args:
        filled: (B, 2), the part of height and width that is no padding, in (0, 1].
        size: height and width of the map.

    Returns:
        (B, H, W) bool.
    """
    # centres in (0, 1) against the part that is image; (B, H) and (B, W)
    rows, columns = (
        (torch.arange(n, device=filled.device) + 0.5) / n
        < part[:, None].clamp(min=0.51 / n)
        for n, part in zip(size, filled.T)
    )
    return rows[:, :, None] & columns[:, None]


class Crops(NamedTuple):
    """Crops as images of their own.

    Attributes:
        images: (N, 3, side, side).
        filled: (N, 2), the part of height and width that a crop fills.
    """

    images: Tensor
    filled: Tensor


def crop_to_fit(images: Tensor, boxes: Sequence[Tensor], side: int) -> Crops:
    """Cut boxes out and fit them into squares, as the pipelines do.

    The proportions stay; what is left at the right or below is 0.

    Args:
        images: (B, 3, H, W), normalised.
        boxes: B tensors (n_b, 4), xyxy in pixels of ``images``; whole pixels are cut,
            at least one.
        side: of the squares, in pixels.
    """
    height, width = images.shape[-2:]
    crops, filled = [], []
    pixels = iter(torch.cat([*boxes]).round().long().tolist())
    for image, its in zip(images, boxes):
        for x1, y1, x2, y2 in islice(pixels, len(its)):
            # at least one pixel, inside the image
            x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            part = image[None, :, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
            # the longer side fills the square, zeros the rest
            factor = side / max(part.shape[2:])
            size = [max(round(n * factor), 1) for n in part.shape[2:]]
            part = F.interpolate(part, size, mode="bilinear", align_corners=False)
            crops.append(F.pad(part[0], (0, side - size[1], 0, side - size[0])))
            filled.append([size[0] / side, size[1] / side])
    stacked = torch.stack(crops).contiguous(memory_format=torch.channels_last)
    return Crops(stacked, images.new_tensor(filled))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms use their running statistics, and leave them as they are."""
    # only those in training: others are frozen already
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
