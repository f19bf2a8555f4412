"""Images before their resize, from which the live teacher crops."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import SampleList
from torch import Tensor


class Originals(NamedTuple):
    """Images as :class:`kdeov_mm.datasets.KeepOriginal` kept them, and their inputs.

    An input shows its original scaled, shifted and perhaps mirrored. For samples
    without an original the input stands for it.

    Attributes:
        pixels: (B, 3, H, W), RGB in [0, 1], black padding.
        sizes: height and width of each image in ``pixels``.
        scale, shift: (B, 2), for x and y, on the host: pixels of the input times
            ``scale``, plus ``shift``, are those of ``pixels``; a negative scale
            mirrors.
    """

    pixels: Tensor
    sizes: Sequence[Sequence[int]]
    scale: Tensor
    shift: Tensor

    def boxes(self, boxes: Sequence[Tensor]) -> list[Tensor]:
        """B tensors of boxes (n_b, 4), xyxy in pixels of the input -> of ``pixels``."""
        counts = [len(own) for own in boxes]
        numbers = [i for i, n in enumerate(counts) for _ in range(n)]
        every, image = torch.cat([*boxes]), torch.tensor(numbers, dtype=torch.long)
        scale, shift = (
            part[image][:, None].to(every.device, non_blocking=True)
            for part in (self.scale, self.shift)
        )
        ends = every.reshape(-1, 2, 2) * scale + shift  # (n, 4) -> (n, 2, xy)
        # a mirror swaps them
        swapped = torch.cat([ends.amin(1), ends.amax(1)], 1)
        return [*swapped.split(counts)]

    def windows(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """What inputs of B heights and widths show of the images: (3, h, w) each.

        In whole pixels, at least one.
        """
        whole = [self.scale.new_tensor([[0, 0, s[1], s[0]]]) for s in shapes]
        windows = [box.round().long().tolist()[0] for box in self.boxes(whole)]
        parts = []
        for image, window, (height, width) in zip(self.pixels, windows, self.sizes):
            x1, y1, x2, y2 = window
            # inside the image: an input may have more padding than that
            x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
            x2, y2 = min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)
            parts.append(image[:, y1:y2, x1:x2])
        return parts

    def mirrored(self, shapes: Sequence[tuple[int, ...]]) -> "Originals":
        """Those of the same inputs, of B heights and widths, mirrored left to right."""
        # x of the input is its width minus x of the mirrored one
        widths = self.scale.new_tensor([[shape[1], 0] for shape in shapes])
        turn = self.scale.new_tensor([-1, 1])
        shift = self.shift + widths * self.scale
        return self._replace(scale=self.scale * turn, shift=shift)


def find_originals(
    preprocessor: Any, samples: SampleList, pixels: Tensor
) -> Originals | None:
    """The originals that samples have; None where none of them has one.

    Args:
        preprocessor: the student's.
        samples: B samples, as :class:`kdeov_mm.datasets.PackInputs` makes them.
        pixels: (B, 3, H, W), the inputs as RGB in [0, 1].

    Raises:
        ValueError: ``batch_augments``, which change inputs and do not say how.
    """
    if not any("original" in sample for sample in samples):
        return None
    if preprocessor.batch_augments:
        raise ValueError(
            "batch_augments of the data preprocessor change inputs after KeepOriginal "
            "and do not record it: take them out, or KeepOriginal."
        )
    images, maps = [], []
    for sample, image in zip(samples, pixels):
        if "original" in sample:
            image = sample.original
            # from the input back to the original
            matrix = np.linalg.inv(sample.homography_matrix.astype(float))
            maps.append([*matrix[[0, 1], [0, 1]], *matrix[:2, 2]])
        else:
            # the input itself, and nothing between both
            image = image[:, : sample.img_shape[0], : sample.img_shape[1]]
            maps.append([1.0, 1.0, 0.0, 0.0])
        images.append(image)
    # one stack of all, black around them
    sizes = [image.shape[1:] for image in images]
    height, width = (max(side) for side in zip(*sizes))
    kept = all("original" in sample for sample in samples)
    stack = pixels.new_zeros(
        (len(images), 3, height, width), dtype=torch.uint8 if kept else pixels.dtype
    )
    for place, image, sample in zip(stack, images, samples):
        if not kept and "original" in sample:
            image = _rgb(image.to(stack.device, non_blocking=True), preprocessor)
        place[:, : image.shape[1], : image.shape[2]].copy_(image, non_blocking=True)
    if kept:
        stack = _rgb(stack, preprocessor)
    scale, shift = torch.tensor(maps, dtype=torch.float).split(2, 1)
    return Originals(stack, sizes, scale, shift)


def _rgb(pixels: Tensor, preprocessor: Any) -> Tensor:
    """Originals (..., 3, H, W) uint8 as RGB in [0, 1]."""
    if preprocessor._channel_conversion:
        pixels = pixels.flip(-3)
    return pixels / 255
