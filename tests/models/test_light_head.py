"""A light head and neck, and one box for an object without suppression."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from torchvision.ops import box_iou

from kdeov_mm import KDEOV
from kdeov_mm.models import KDEOVDetector, ov_head, postprocess
from kdeov_mm.models.postprocess import (
    Scored,
    best_boxes,
    is_simple,
    peaks,
    set_suppression,
)

from ..conftest import WORDS
from .test_folded import LIGHT, build, found

PLAIN = dict(multi_label=True, score_thr=0.05, nms_pre=1000, max_per_img=3, nms=None)
META: dict[str, Any] = dict(ori_shape=(64, 64), scale_factor=(1.0, 1.0))


def mult_adds(head: Any, feats: Any) -> int:
    """Multiplications of a head's convolutions."""
    total = 0

    def count(module: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    convs = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [conv.register_forward_hook(count) for conv in convs]
    head(feats)
    for hook in hooks:
        hook.remove()
    return total


def test_its_head_costs_a_fifth(build_detector: Callable[..., KDEOVDetector]) -> None:
    costs = []
    for form in ("unit length", "light"):
        folded = build(build_detector, form).fold(WORDS)
        feats = folded.extract_feat(torch.rand(1, 3, 64, 64))
        costs.append(mult_adds(folded.bbox_head.head_module, feats))
    assert costs[1] < 0.2 * costs[0]


def test_its_neck_costs_half(build_detector: Callable[..., KDEOVDetector]) -> None:
    costs, maps = [], []
    for change in ({}, {"neck.type": "LightPAFPN"}):
        folded = build(build_detector, "light", **change).fold(WORDS)
        feats = folded.backbone(torch.rand(1, 3, 64, 96))
        costs.append(mult_adds(folded.neck, feats))
        maps.append([each.shape for each in folded.neck(feats)])
    assert costs[1] < 0.5 * costs[0] and maps[0] == maps[1]


def test_without_suppression_the_best_scores_stay() -> None:
    cfg = ConfigDict(PLAIN)
    assert is_simple(cfg)
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 90, 90]])
    indices = torch.tensor([[0, 1], [1, 1], [2, 0], [2, 1]])
    scored = Scored(torch.tensor([1.0, 3.0, 2.0, -1.0]), indices)
    best = best_boxes(scored, boxes, META, cfg, rescale=True)
    assert best.labels.tolist() == [1, 0, 1]
    assert best.bboxes.tolist() == [[0, 0, 9, 9], [5, 5, 64, 64], [0, 0, 9, 9]]
    torch.testing.assert_close(best.scores, torch.tensor([3.0, 2, 1]).sigmoid())
    # across words it is suppressed all the same, where that is asked for
    set_suppression(cfg, iou_threshold=0.5)
    assert cfg.nms is None
    set_suppression(cfg, iou_threshold=0.5, agnostic=True)
    best = best_boxes(scored, boxes, META, cfg, rescale=True)
    assert best.labels.tolist() == [1, 0]


def test_a_peak_is_the_best_of_its_square_and_of_its_place_in_other_levels() -> None:
    fine, coarse = torch.full((1, 1, 8, 8), -5.0), torch.full((1, 1, 4, 4), -6.0)
    fine[..., 1, 1], fine[..., 2, 3], fine[..., 1, 6] = 2.0, 1.0, 0.5
    coarse[..., 3, 3], coarse[..., 0, 3] = 3.0, 0.4
    kept = [each[0, 0].nonzero().tolist() for each in peaks([fine, coarse])]
    # (2, 3) is near a better one; at (0, 3) of the coarse level (1, 6) is better
    assert [1, 1] in kept[0] and [1, 6] in kept[0] and [2, 3] not in kept[0]
    assert kept[1] == [[3, 3]]
    # what the better one of the coarse level covers
    assert [6, 6] not in kept[0]


@pytest.mark.parametrize("sides", [(1, 1), (2, 7), (9, 6)])
def test_the_best_of_a_square_is_that_of_pooling(sides: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *sides)
    pooled = F.max_pool2d(maps, postprocess.PEAK, 1, postprocess.PEAK // 2)
    assert torch.equal(postprocess._best_around(maps), pooled)


def test_without_suppression_the_peaks_of_each_word_stay() -> None:
    cfg = ConfigDict(PLAIN, max_per_img=4)
    boxes = torch.arange(64 + 16).float()[:, None] + torch.tensor([0.0, 0, 9, 9])
    # two words at one place, and beside it the first, worse, and a third; one far away
    indices = torch.tensor([[9, 1], [9, 0], [10, 1], [10, 3], [30, 2]])
    scored = Scored(torch.tensor([2.0, 1.0, 1.9, 0.5, 0.0]), indices)
    best = best_boxes(scored, boxes, META, cfg, True, [(8, 8), (4, 4)])
    assert best.labels.tolist() == [1, 0, 3, 2]
    assert best.bboxes[:, 0].tolist() == [9, 9, 10, 30]


def test_fewer_boxes_than_words_are_the_best_peaks_of_all() -> None:
    levels = [torch.randn(2, 7, 8, 8), torch.randn(2, 7, 4, 4)]
    shapes, boxes = [(8, 8), (4, 4)], torch.rand(80, 4)
    some, words = postprocess.best_words(levels, 3)
    of_some = [
        some_level.masked_fill(~kept, -9) for some_level, kept in zip(some, peaks(some))
    ]
    of_all = [
        level.masked_fill(~kept, -9) for level, kept in zip(levels, peaks(levels))
    ]
    for i in range(2):
        best = torch.cat([level[i].flatten() for level in of_all]).topk(3).values
        got = torch.cat([level[i].flatten() for level in of_some]).topk(3).values
        assert torch.equal(best, got)
        assert torch.equal(some[1][i], levels[1][i, words[i]])
        # and where they are single scores
        rows = torch.cat([level[i].flatten(1) for level in levels], 1).T
        scored = Scored(rows.flatten(), torch.ones_like(rows).nonzero())
        cfg = ConfigDict(PLAIN, max_per_img=3)
        found_boxes = best_boxes(scored, boxes, META, cfg, True, shapes)
        assert torch.equal(found_boxes.scores, best.sigmoid())
        assert {*found_boxes.labels.tolist()} <= {*words[i].tolist()}


def test_a_picture_without_a_score_has_no_peaks() -> None:
    cfg = ConfigDict(PLAIN, max_per_img=4)
    nothing = Scored(torch.empty(0), torch.empty(0, 2, dtype=torch.long))
    best = best_boxes(nothing, torch.rand(80, 4), META, cfg, True, [(8, 8), (4, 4)])
    assert best.bboxes.shape == (0, 4) and not len(best)


def test_peaks_are_the_same_of_words_in_parts_and_folded(
    build_detector: Callable[..., KDEOVDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(build_detector, "light")
    model.bbox_head.test_cfg.update(PLAIN, max_per_img=40, nms_pre=10000)
    images = torch.rand(2, 3, 96, 128)
    together, folded = found(model, images, WORDS), found(model.fold(WORDS), images)
    monkeypatch.setattr(ov_head, "PART", 10)
    monkeypatch.setattr(postprocess, "PART", 500)
    for one, *others in zip(together, found(model, images, WORDS), folded):
        assert len(one) > 3
        for other in others:
            assert one.labels.tolist() == other.labels.tolist()
            torch.testing.assert_close(one.bboxes, other.bboxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_interface_takes_it(
    agnostic: bool, build_detector: Callable[..., KDEOVDetector]
) -> None:
    model = build(build_detector, "light")
    model.bbox_head.test_cfg.update(PLAIN, max_per_img=50)
    scale = dict(type="Resize", scale=(64, 64), keep_ratio=True)
    loader = dict(dataset=dict(pipeline=[scale]))
    model.cfg = Config(dict(model=dict(), test_dataloader=loader))
    image = torch.rand(2, 3, 64, 64)
    before = [each.bboxes for each in found(model, image, WORDS)]
    assert all(0 < len(boxes) < 50 for boxes in before)
    noise = (image[0] * 255).byte().permute(1, 2, 0).numpy()
    detector = KDEOV(model)
    (got,) = detector.open_vocabulary_detect(noise, WORDS, 0.1, 0.5, agnostic=agnostic)
    overlap = box_iou(got["boxes"], got["boxes"]).fill_diagonal_(0)
    # a location has a box for each word, or one
    assert len(got["boxes"]) > 2 and bool(overlap.max() < 0.99) is agnostic
    assert model.bbox_head.test_cfg.nms is None


def test_old_heads_have_no_new_weights(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    old = build(build_detector).state_dict()
    assert not any("depthwise" in key for key in old)
    new = build_detector(teacher=None, distill=None, **LIGHT).state_dict()
    assert any("depthwise" in key for key in new)
