"""Half precision gives what float32 gives: boxes, matched locations, losses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmyolo.models.dense_heads import YOLOv8Head
from torch import Tensor

from kdeov_mm.models import KDEOVDetector, OVHead, RegionDistillation

from ..conftest import EMBED_DIMS, loss_and_regions, make_sample, match

Build = Callable[..., KDEOVDetector]
SIDE = 640
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def head(build_detector: Build) -> OVHead:
    return build_detector(teacher=None, distill=None).bbox_head.train()


def make_feats(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    levels = ((64, 8), (128, 16), (256, 32))
    maps = [torch.randn(2, c, SIDE // s, SIDE // s) for c, s in levels]
    return [level.bfloat16().to(dtype) for level in maps]  # the same for all


def make_samples() -> list[DetDataSample]:
    """Boxes of 4 to 640 pixels, log-uniform, and one as large as the image."""
    torch.manual_seed(1)
    samples = []
    for _ in range(2):
        sides = torch.exp(torch.empty(30, 2).uniform_(math.log(4), math.log(SIDE)))
        centres = torch.rand(30, 2) * (SIDE - sides) + sides / 2
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1)
        boxes = torch.cat([boxes, torch.tensor([[0.0, 0, SIDE, SIDE]])])
        labels = torch.randint(0, 6, (31,)).tolist()
        samples.append(make_sample(boxes, labels, shape=(SIDE, SIDE)))
    return samples


def true_outputs(
    head: OVHead, samples: list[DetDataSample]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Logits, sides and box logits of a student that finds nearly every object."""
    torch.manual_seed(2)
    logits, sides, side_logits = [], [], []
    bins = torch.arange(16.0)
    for stride in (8, 16, 32):
        n = SIDE // stride
        centres = (
            torch.cartesian_prod(torch.arange(n), torch.arange(n)) + 0.5
        ) * stride
        centres = centres.flip(1).float()  # (n * n, 2), xy
        wanted = []
        for sample in samples:
            boxes = sample.gt_instances.bboxes  # the nearest object of each location
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2
            mine = boxes[torch.cdist(centres, middle).argmin(1)]
            apart = torch.cat([centres - mine[:, :2], mine[:, 2:] - centres], 1)
            wanted.append(apart / stride + torch.randn(n * n, 4) / 4)
        ltrb = torch.stack(wanted).clamp(0.1, 14.9)  # (B, n * n, 4)
        level = -((bins - ltrb[..., None]) ** 2)
        side_logits.append(level)
        means = head.head_module.box_sides(level).transpose(1, 2)
        sides.append(means.unflatten(2, (n, n)))
        logits.append(torch.randn(2, 6, n, n) - 3)
    return logits, sides, side_logits


def losses_and_matches(
    head: OVHead, run: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, float], Tensor]:
    """Losses, and (B, N) which locations were matched."""
    matched: list[Tensor] = []
    hook = head.assigner.register_forward_hook(
        lambda _, args, out: matched.append(out["fg_mask_pre_prior"].bool())
    )
    losses = {key: value.item() for key, value in run().items()}
    hook.remove()
    return losses, matched[0]


def test_the_losses_are_mmyolos(build_detector: Build, head: OVHead) -> None:
    """In float32, of one process; mmyolo's are multiplied by the batch size."""
    samples = make_samples()
    logits, sides, side_logits = true_outputs(head, samples)
    truth = [s.gt_instances for s in samples]
    metas = [s.metainfo for s in samples]
    losses = head.loss_by_feat(logits, sides, side_logits, truth, metas)
    head.num_classes = 6
    theirs = YOLOv8Head.loss_by_feat(head, logits, sides, side_logits, truth, metas)
    for name, value in losses.items():
        torch.testing.assert_close(value * 2, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_half_outputs_are_matched_and_learnt_as_float32_ones(
    head: OVHead, dtype: torch.dtype
) -> None:
    samples = make_samples()
    outputs = true_outputs(head, samples)
    truth = [s.gt_instances for s in samples]
    metas = [s.metainfo for s in samples]
    # the same values in both precisions
    rounded = [[level.to(dtype) for level in each] for each in outputs]
    full = [[level.float() for level in each] for each in rounded]

    def run(given: list[list[Tensor]]) -> dict[str, Tensor]:
        return head.loss_by_feat(*given, truth, metas)

    wanted, locations = losses_and_matches(head, lambda: run(full))
    with torch.autocast("cpu", dtype):
        found, matched = losses_and_matches(head, lambda: run(rounded))
    assert locations.sum() > 300 and torch.equal(matched, locations)
    assert found == pytest.approx(wanted, rel=1e-4)
    # large boxes are found: of no location is the overlap lost
    assert wanted["loss_bbox"] < 7.5 * 0.3


@pytest.mark.parametrize("dtype", HALF)
def test_a_head_under_autocast_matches_the_locations_of_float32(
    head: OVHead, dtype: torch.dtype
) -> None:
    """The branches compute in half; one location in a hundred may be another."""
    torch.manual_seed(3)
    samples, text = (
        make_samples(),
        torch.nn.functional.normalize(torch.randn(6, EMBED_DIMS), dim=1),
    )
    full = losses_and_matches(
        head,
        lambda: loss_and_regions(head, make_feats(torch.float32), text, samples)[0],
    )
    with torch.autocast("cpu", dtype):
        half = losses_and_matches(
            head, lambda: loss_and_regions(head, make_feats(dtype), text, samples)[0]
        )
    assert (half[1] != full[1]).sum() <= full[1].sum() / 100
    assert half[0] == pytest.approx(full[0], rel=0.01)


@pytest.mark.parametrize("dtype", HALF)
def test_boxes_under_autocast_are_those_of_float32_within_a_pixel(
    head: OVHead, dtype: torch.dtype
) -> None:
    samples = make_samples()
    text = torch.nn.functional.normalize(torch.randn(6, EMBED_DIMS), dim=1)
    _, full = loss_and_regions(head, make_feats(torch.float32), text, samples)
    with torch.autocast("cpu", dtype):
        _, half = loss_and_regions(head, make_feats(dtype), text, samples)
    assert half.boxes.dtype == half.centres.dtype == torch.float32
    assert (half.boxes - full.boxes).abs().max() < 1


@pytest.mark.parametrize("dtype", HALF)
def test_regions_of_all_sizes_find_their_locations_in_half(
    head: OVHead, dtype: torch.dtype
) -> None:
    samples = make_samples()
    text = torch.nn.functional.normalize(torch.randn(6, EMBED_DIMS), dim=1)
    distill = RegionDistillation(dict(cosine=dict(type="CosineDistance")))
    _, full = loss_and_regions(head, make_feats(torch.float32), text, samples)
    with torch.autocast("cpu", dtype):
        _, half = loss_and_regions(head, make_feats(dtype), text, samples)
        boxes = samples[0].gt_instances.bboxes
        where, which, _ = match(distill, boxes, half, 0)
    assert set(which.tolist()) == set(range(len(boxes)))
    wanted = {*zip(*(t.tolist() for t in match(distill, boxes, full, 0)[:2]))}
    found = {*zip(where.tolist(), which.tolist())}
    assert len(found ^ wanted) <= len(wanted) / 20


LEVELS = dict(in_channels=[256, 512, 1024], widen_factor=0.25, text_dims=EMBED_DIMS)


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"fusion": dict(type="FiLMFusion", **LEVELS)},
        {"fusion": dict(type="CrossAttentionFusion", **LEVELS)},
        {"bbox_head.head_module.adapter": dict(type="ClassFiLM", text_dims=EMBED_DIMS)},
    ],
    ids=["plain", "FiLM", "attention", "ClassFiLM"],
)
def test_a_student_of_half_weights_gives_float32_boxes(
    build_detector: Build, words: dict[str, Any]
) -> None:
    model = build_detector(teacher=None, distill=None, **words).eval().bfloat16()
    samples = [make_sample(shape=(64, 64))]
    with torch.no_grad():
        (sample,) = model.predict(torch.rand(1, 3, 64, 64).bfloat16(), samples)
    assert sample.pred_instances.bboxes.dtype == torch.float32
