"""Images of any kind as arrays (H, W, 3) uint8 RGB, which all of the package works on.

The order of channels changes at borders alone: where OpenCV decodes or encodes, and
where mm's data preprocessor, which expects BGR, is given pixels.
"""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..border import taken_apart
from ..reader import read_image, to_rgb

AnyImage: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
T = TypeVar("T")


def as_rgb(image: Any) -> np.ndarray:
    """Any image as (H, W, 3) uint8 RGB.

    Args:
        image: a path; a PIL image; an array (H, W, 3) or (H, W), uint8 RGB; or a tensor
            (3, H, W), RGB, uint8 or floats in [0, 1].

    Raises:
        ValueError: it is none of these.
        OSError: a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        with taken_apart(f"an image of mode {image.mode}"):
            return to_rgb(image)
    # what is in memory is checked: a wrong layout would be a wrong image
    if isinstance(image, Tensor):
        image = _tensor_to_array(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(
            "an image is a path, a PIL image, an array (H, W, 3) or a tensor "
            f"(3, H, W), got a {type(image).__name__}"
        )
    return np.ascontiguousarray(check_array(image, "RGB"))


def check_array(image: np.ndarray, channels: str) -> np.ndarray:
    """An array (H, W, 3) or, of gray, (H, W), as (H, W, 3).

    Args:
        image: uint8.
        channels: their order, RGB or BGR, as the caller takes them.

    Raises:
        ValueError: another shape, no pixels, or no uint8.
    """
    if image.ndim == 2:
        image = np.stack([image] * 3, -1)
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        raise ValueError(
            f"expected an array (H, W, 3) of uint8, {channels}, got "
            f"{image.shape} of {image.dtype}"
        )
    return image


def _tensor_to_array(image: Tensor) -> np.ndarray:
    """A tensor (3, H, W), uint8 or in [0, 1] -> (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(
            f"expected a tensor (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}"
        )
    if image.is_complex() or image.layout != torch.strided or image.is_meta:
        raise ValueError(
            f"expected a dense tensor of pixels, got {image.dtype}, {image.layout}, on "
            f"{image.device}"
        )
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        # a hundredth more is what resizing with bicubic weights adds
        low, high = image.min().item(), image.max().item()
        if not (image.is_floating_point() and -0.01 <= low <= high <= 1.01):
            raise ValueError(
                "expected a tensor of uint8, or of floats in [0, 1], before any "
                f"normalisation; got {image.dtype} from {low:.3g} to {high:.3g}"
            )
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)


def image_files(folder: str | Path) -> Iterator[Path]:
    """The image files of a folder and its subfolders, by their names alone.

    Raises:
        OSError: a folder cannot be listed, which does not make it an empty one.
    """

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMG_EXTENSIONS):
                yield Path(root, name)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted, with the numbers in their names as numbers.

    >>> [path.name for path in natural_order([Path("10.png"), Path("9.png")])]
    ['9.png', '10.png']
    """

    return sorted(paths, key=natural_key)


def natural_key(path: PurePath) -> list[tuple[list[str | int], str]]:
    """For sorting paths by the numbers in their names: "a10b" is "a", 10, "b"."""
    # every second piece is a number
    split = [re.split("([0-9]+)", part.lower()) for part in path.parts]
    numbers = [[int(n) if i % 2 else n for i, n in enumerate(s)] for s in split]
    return [*zip(numbers, path.parts)]


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items; the last one may be shorter.

    >>> [*in_batches("abcde", 2)]
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    return iter(lambda: [*islice(rest, size)], [])
