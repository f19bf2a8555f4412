"""GroupNorm, BatchNorm and L2 norm fold with the words into one product, exactly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm.models import HeadInput, KDEOVDetector, SpatialProjection, TextEmbeds
from kdeov_mm.models.folding import FoldedLevel, fold_level
from kdeov_mm.models.text_classifier import Linear1x1

from ..conftest import EMBED_DIMS, enliven

Build = Callable[..., KDEOVDetector]
NORMS: dict[str, dict[str, Any] | None] = {
    "no norm": None,
    "batch norm": dict(type="BN"),
    "group norm": dict(type="GN", num_groups=8),
    "one group": dict(type="GN", num_groups=1),
    "groups of two": dict(type="GN", num_groups=32),
}
SIZES = [(1, 1), (3, 2), (20, 13), (40, 40)]


def make_level(norm: str) -> SpatialProjection:
    """24 channels to 64 dimensions, all parameters away from their start."""
    torch.manual_seed(1)
    level = SpatialProjection(24, 64, NORMS[norm])
    for parameter in level.parameters():
        torch.nn.init.normal_(parameter, 0.3)
    level(torch.randn(8, 24, 9, 9) * 2 + 1)
    return level.eval().requires_grad_(False)


def make_words(number: int) -> Linear1x1:
    return Linear1x1(F.normalize(torch.randn(number, 64)) * 20, torch.randn(number))


def plain(
    level: SpatialProjection, feats: Tensor, words: Linear1x1, unit: bool
) -> Tensor:
    """Location by location: project, norm, divide, times the words."""
    embeds = level(feats)
    embeds = F.normalize(embeds, dim=1) if unit else embeds / 8
    logits = torch.einsum("bdhw,kd->bkhw", embeds, words.weight)
    return logits + words.bias[:, None, None]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("unit", [False, True], ids=["as they are", "unit length"])
@pytest.mark.parametrize("size", SIZES)
def test_folded_logits_are_the_plain_ones(
    norm: str, unit: bool, size: tuple[int, int]
) -> None:
    level, words = make_level(norm), make_words(9)
    feats = torch.randn(3, 24, *size) * 3 + 1
    feats[1] *= 10  # each image has statistics of its own
    wanted = plain(
        level.double(), feats.double(), Linear1x1(*(t.double() for t in words)), unit
    )
    scaled, layer = fold_level(level.float(), feats, words, unit)
    atol = 2e-4
    torch.testing.assert_close(layer(scaled).double(), wanted, rtol=1e-4, atol=atol)
    for i in range(3):  # one image of the batch, as when words are scored in parts
        alone = layer.of(i)(scaled[i : i + 1])
        torch.testing.assert_close(
            alone.double(), wanted[i : i + 1], rtol=1e-4, atol=atol
        )


@pytest.mark.parametrize("norm", ["batch norm", "group norm"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("number", [1, 1203])
def test_any_number_of_words(norm: str, unit: bool, number: int) -> None:
    level, words = make_level(norm), make_words(number)
    feats = torch.randn(1, 24, 20, 20)
    scaled, layer = fold_level(level, feats, words, unit)
    wanted = plain(level, feats, words, unit)
    torch.testing.assert_close(layer(scaled), wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("norm", ["batch norm", "group norm"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_fold_within_a_hundredth(
    norm: str, unit: bool, dtype: torch.dtype
) -> None:
    level, words = make_level(norm), make_words(20)
    feats = (torch.randn(2, 24, 20, 20) * 3 + 1).to(dtype)
    wanted = plain(level, feats.float(), words, unit)
    with torch.autocast("cpu", dtype):
        scaled, layer = fold_level(level, feats, words, unit)
        assert scaled.dtype == dtype and layer.weight.dtype == torch.float32
        logits = layer(scaled)
    assert (logits - wanted).abs().mean() < 0.01 * wanted.abs().mean()


@pytest.mark.parametrize("norm", ["group norm", "one group"])
@pytest.mark.parametrize("unit", [False, True])
def test_a_head_scores_as_its_embeddings_do(
    build_detector: Build, norm: str, unit: bool
) -> None:
    """In the order that costs less, and as the plain detector of fixed words."""
    projection = dict(NORMS[norm] or {}, _delete_=True)
    changes = {"projection_norm": projection, "l2_norm": unit}
    model = enliven(
        build_detector(
            **{f"bbox_head.head_module.{k}": v for k, v in changes.items()},
            teacher=None,
            distill=None,
        )
    )
    module = model.bbox_head.head_module
    text = F.normalize(torch.randn(7, EMBED_DIMS), dim=1)
    feats = model.extract_feat(torch.rand(2, 3, 96, 64))
    with torch.no_grad():
        embeds, *_ = module.embed(feats)
        wanted = module.classify(embeds, text)
        assert module._folding_is_cheaper(7)
        logits = module(HeadInput(feats, TextEmbeds(text)))[0]
        ends = module.final_layers(text)
        hidden, *_ = module.trunk(feats)
    assert all(isinstance(end[-1], FoldedLevel) for end in ends)
    for a, b, end, h in zip(logits, wanted, ends, hidden, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(end(h), b, rtol=1e-4, atol=2e-4)
