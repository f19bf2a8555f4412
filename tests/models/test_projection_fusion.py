"""Projection into the teacher's space, fusion with the words, distances."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from kdeov_mm.models import (
    CosineDistance,
    CrossAttentionFusion,
    FiLMFusion,
    KDEOVDetector,
    L1Distance,
    L2Distance,
    RelationalDistance,
    SpatialProjection,
)

from ..conftest import EMBED_DIMS, make_sample

CHANNELS = [64, 128, 256]
FUSIONS = [FiLMFusion, CrossAttentionFusion]


def make_fusion(fusion: type[nn.Module], moved: bool = False) -> nn.Module:
    """A fusion at its start, or (`moved`) after training has moved it."""
    module = fusion(CHANNELS, EMBED_DIMS, widen_factor=0.25)
    if moved:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return module


def make_feats(batch: int = 2) -> tuple[Tensor, ...]:
    sizes = ((8, 6), (4, 3), (2, 2))
    return tuple(
        torch.randn(batch, c // 4, *size)
        for c, size in zip(CHANNELS, sizes, strict=True)
    )


def make_text(words: int = 5) -> Tensor:
    return F.normalize(torch.randn(words, EMBED_DIMS), dim=-1)


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_is_the_identity_at_the_start(fusion: type[nn.Module]) -> None:
    feats = make_feats()
    assert_same(make_fusion(fusion)(feats, make_text()), feats)


@pytest.mark.parametrize("words", [1, 7])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_keeps_shapes_for_any_number_of_words(
    fusion: type[nn.Module], words: int
) -> None:
    feats = make_feats(batch=3)
    fused = make_fusion(fusion, moved=True)(feats, make_text(words))
    assert [f.shape for f in fused] == [f.shape for f in feats]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fused, feats, strict=True))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_does_not_see_the_order_of_the_words(fusion: type[nn.Module]) -> None:
    module, feats, text = make_fusion(fusion, moved=True), make_feats(), make_text()
    assert_same(module(feats, text[[3, 1, 4, 0, 2]]), module(feats, text))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_treats_the_images_of_a_batch_apart(fusion: type[nn.Module]) -> None:
    module, feats, text = make_fusion(fusion, moved=True), make_feats(), make_text()
    alone = module([f[1:] for f in feats], text)
    assert_same([f[1:] for f in module(feats, text)], alone)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradient_reaches_the_fusion_from_its_start(fusion: type[nn.Module]) -> None:
    module = make_fusion(fusion)
    sum((f**2).sum() for f in module(make_feats(), make_text())).backward()
    moved = [n for n, p in module.named_parameters() if p.grad.abs().sum() > 0]
    assert moved, "zero gradient: the fusion would stay the identity for ever"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_loss_of_a_detector_moves_its_fusion(
    fusion: type[nn.Module], build_detector: Callable[..., KDEOVDetector]
) -> None:
    cfg = dict(
        type=fusion.__name__, in_channels=[256, 512, 1024],
        text_dims=EMBED_DIMS, widen_factor=0.25,
    )  # fmt: skip
    model = build_detector(fusion=cfg, teacher=None, distill=None)
    sample = make_sample([[8, 8, 40, 48]], [2])
    losses = model.loss(torch.rand(1, 3, 64, 64), [sample])
    sum(losses.values()).backward()
    grads = [p.grad.abs().sum() for p in model.fusion.parameters()]
    assert sum(grads) > 0


@pytest.mark.parametrize(
    "norm_cfg", [None, dict(type="BN"), dict(type="GN", num_groups=8)]
)
def test_projection_keeps_the_place_and_changes_the_channels(
    norm_cfg: dict[str, Any] | None,
) -> None:
    module = SpatialProjection(12, EMBED_DIMS, norm_cfg)
    assert module(torch.randn(2, 12, 5, 7)).shape == (2, EMBED_DIMS, 5, 7)


@pytest.mark.parametrize("norm_cfg", [None, dict(type="BN")])
def test_projection_maps_each_location_by_itself(
    norm_cfg: dict[str, Any] | None,
) -> None:
    module = SpatialProjection(12, EMBED_DIMS, norm_cfg).eval()
    feats = torch.randn(2, 12, 5, 7)
    alone = module(feats[1:, :, 2:3, 4:5])
    torch.testing.assert_close(module(feats)[1:, :, 2:3, 4:5], alone)


@pytest.mark.parametrize("norm_cfg", [dict(type="BN"), dict(type="GN", num_groups=1)])
def test_projection_gives_unit_variance_for_any_scale(norm_cfg: dict[str, Any]) -> None:
    module = SpatialProjection(12, EMBED_DIMS, norm_cfg).train()
    for scale in (0.1, 100):
        spread = module(torch.randn(8, 12, 9, 9) * scale).std().item()
        assert spread == pytest.approx(1, abs=0.1)


DISTANCES = {CosineDistance: (0, 2, 1), L2Distance: (0, 4, 2)}
ALL_DISTANCES = [*DISTANCES, L1Distance, RelationalDistance]


@pytest.mark.parametrize("distance", ALL_DISTANCES)
def test_distance_is_zero_when_directions_are_equal(distance: type[nn.Module]) -> None:
    unit = make_text(6)
    torch.testing.assert_close(
        distance()(unit * 7, unit), torch.zeros(6), atol=1e-5, rtol=0
    )
    assert (distance()(-unit, unit) > 0.5).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_of_known_directions(distance: type[nn.Module]) -> None:
    same, opposite, right_angle = DISTANCES[distance]
    student = torch.tensor([[3.0, 0], [-3, 0], [0, 3]])
    wanted = torch.tensor([same, opposite, right_angle], dtype=torch.float)
    torch.testing.assert_close(
        distance()(student, torch.tensor([[1.0, 0]] * 3)), wanted
    )


def test_relational_distance_by_hand() -> None:
    """Two regions at right angles; the student takes the first for the second."""
    teacher = torch.eye(2)
    student = torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    likely, unlikely = math.e / (math.e + 1), 1 / (math.e + 1)
    wanted = likely * math.log(likely / unlikely)
    wanted += unlikely * math.log(unlikely / likely)
    torch.testing.assert_close(
        RelationalDistance(temperature=1.0)(student, teacher),
        torch.tensor([wanted, 0.0]),
    )


def test_relational_distance_does_not_ask_twins_apart() -> None:
    """Two regions that look the same to the teacher are no negatives."""
    twin = F.normalize(torch.tensor([[1.0, 2, 3]]), dim=-1)
    other = F.normalize(torch.tensor([[3.0, -1, 0]]), dim=-1)
    teacher = torch.cat([twin, twin, other])
    student = teacher.clone().requires_grad_()
    RelationalDistance()(student, teacher).sum().backward()
    assert student.grad.abs().max() < 1e-5


def test_l1_distance_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4]]), torch.tensor([[1.0, 0]])
    torch.testing.assert_close(  # (0.6, 0.8) against (1, 0)
        L1Distance()(student, teacher), torch.tensor([1.2])
    )


@pytest.mark.parametrize("distance", ALL_DISTANCES)
def test_distance_of_a_zero_or_half_embedding_is_finite(
    distance: type[nn.Module],
) -> None:
    student = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    value = distance()(student, F.normalize(torch.ones(2, 4), dim=-1))
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert student.grad.isfinite().all()


def test_the_parts_are_in_mmdets_registry() -> None:
    for part in (*FUSIONS, *DISTANCES, L1Distance, SpatialProjection):
        assert MODELS.get(part.__name__) is part


def test_relational_distance_is_zero_when_equal_in_mixed_precision() -> None:
    unit = F.normalize(torch.randn(6, 16), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        value = RelationalDistance()(unit, unit)
    assert value.abs().max() < 1e-5
