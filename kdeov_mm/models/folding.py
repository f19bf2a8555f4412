"""Projection, norm, L2 norm and words of a level, as one map of its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .box_branches import without_autocast
from .projection import SpatialProjection
from .text_classifier import Linear1x1


def fold_level(
    projection: SpatialProjection, feats: Tensor, words: Linear1x1, unit: bool
) -> tuple[Tensor, Linear1x1]:
    """Fold what follows the features of a level into one product.

    With e = A x + c, the logits T e + b are (T A) x + T c + b. Where embeddings are
    divided by their length, the features are divided instead: |e|^2 is
    x' (A' A) x + 2 (A' c)' x + c' c. A, c and the centre that x is counted from may be
    those of the image (:meth:`SpatialProjection.linear`).

    Args:
        projection: to D dimensions, not in training.
        feats: (B, C, H, W).
        words: of embeddings: (K, D) and (K,).
        unit: whether embeddings are divided by their length, else by sqrt(D).

    Returns:
        What is multiplied, (B, C, H, W) or (B, C + 1, H, W), and the convolution.
    """
    # in full precision: products of several matrices round visibly in half
    with without_autocast(feats.device):
        matrix, shift, centre = projection.linear(feats)
        x = feats if centre is None else feats.float() - centre
        weight, bias = words.weight.float(), words.bias.float()
        if not unit:
            norm = matrix.shape[-2] ** 0.5
            matrix, shift = matrix / norm, shift / norm
            layer = Linear1x1(weight @ matrix, shift @ weight.T + bias)
            return x.to(feats.dtype), layer
        scaled = _with_ones(x.float(), _inverse_length(x, matrix, shift))
        return scaled.to(feats.dtype), unit_kernel(words, matrix, shift)


def unit_kernel(
    words: Linear1x1, matrix: Tensor, shift: Tensor, ones: int = 1
) -> Linear1x1:
    """Words of unit embeddings -> of features and ones, both divided by the length.

    Args:
        words: (K, D) and (K,).
        matrix: A, (D, C) or (B, D, C).
        shift: c, (D,) or (B, D).
        ones: channels of ones behind the features; the first of them counts.
    """
    weight = words.weight.float()
    last = F.pad((shift @ weight.T)[..., None], (0, ones - 1))
    return Linear1x1(torch.cat([weight @ matrix, last], -1), words.bias.float())


def _with_ones(feats: Tensor, inverse: Tensor, ones: int = 1) -> Tensor:
    """(B, C, H, W), (B, 1, H, W) -> (B, C + ones, H, W): feats and ones, times that."""
    maps = [feats * inverse, inverse.expand(-1, ones, -1, -1)]
    if torch.compiler.is_exporting():
        return torch.cat(maps, 1)
    # in channels-last memory, which the product needs to be fast
    parts = [part.permute(0, 2, 3, 1) for part in maps]
    return torch.cat(parts, -1).permute(0, 3, 1, 2)


def _inverse_length(feats: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """1 / |A x + c| for features (B, C, H, W): (B, 1, H, W), float32.

    Args:
        feats: x.
        matrix: A, (D, C) or (B, D, C).
        shift: c, (D,) or (B, D).
    """
    gram = matrix.transpose(-2, -1) @ matrix  # (C, C) or (B, C, C)
    cross = (shift[..., None, :] @ matrix)[..., 0, :]  # (C,) or (B, C)
    feats = feats.float()
    square = (Linear1x1(gram, 2 * cross)(feats) * feats).sum(1, keepdim=True)
    square = square + shift.square().sum(-1)[..., None, None, None]
    # as torch's normalize, nothing is divided by less than 1e-12
    return square.clamp(min=1e-24).rsqrt()


class DividedByLength(nn.Module):
    """Features x and ones, divided by |A x + c|: (B, C, H, W) -> (B, C + ones, H, W).

    With the factor R of a QR decomposition of [A, c], |A x + c| is |R [x, 1]|: a
    convolution to C channels and, of the last row of R, a constant.

    Args:
        matrix: A, (D, C).
        shift: c, (D,).
    """

    ones = 16  # processors divide channels into blocks of that many

    def __init__(self, matrix: Tensor, shift: Tensor) -> None:
        super().__init__()
        channels = matrix.shape[1]
        factor = torch.linalg.qr(torch.cat([matrix, shift[:, None]], 1), mode="r").R
        self.factor = nn.Conv2d(channels, min(channels, len(factor)), 1)
        rows = factor[:channels]
        self.factor.weight = nn.Parameter(rows[:, :-1, None, None].contiguous())
        self.factor.bias = nn.Parameter(rows[:, -1].contiguous())
        self.rest = nn.Parameter(factor[channels:, -1].square().sum())

    def forward(self, feats: Tensor) -> Tensor:
        """Divide."""
        square = self.factor(feats).float().square().sum(1, keepdim=True) + self.rest
        # as torch's normalize, nothing is divided by less than 1e-12
        inverse = square.clamp(min=1e-24).rsqrt().to(feats.dtype)
        return _with_ones(feats, inverse, self.ones)


class FoldedLevel(nn.Module):
    """Features (B, C, H, W) -> logits (B, K, H, W) of fixed words, by GroupNorm.

    Args:
        projection: of the level; it is kept.
        words: of embeddings, a convolution from D to K channels.
        unit: see :func:`fold_level`.
    """

    def __init__(
        self, projection: SpatialProjection, words: nn.Conv2d, unit: bool
    ) -> None:
        super().__init__()
        self.projection = projection
        self.words = words
        self.unit = unit

    @property
    def weight(self) -> Tensor:
        """Of the words, (K, D, 1, 1)."""
        return self.words.weight

    @property
    def bias(self) -> Tensor:
        """Of the words, (K,)."""
        assert self.words.bias is not None
        return self.words.bias

    def split(self, feats: Tensor) -> tuple[Tensor, Linear1x1]:
        """As :func:`fold_level`."""
        words = Linear1x1(self.words.weight[..., 0, 0], self.bias)
        return fold_level(self.projection, feats, words, self.unit)

    def forward(self, feats: Tensor) -> Tensor:
        """Score."""
        scaled, layer = self.split(feats)
        return layer(scaled)
