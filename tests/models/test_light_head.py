"""A light head, and one box for an object without suppression."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torchvision.ops import box_iou

from kdeov_mm import KDEOV
from kdeov_mm.models import KDEOVDetector
from kdeov_mm.models.postprocess import Scored, best_boxes, is_simple, set_suppression

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


def test_one_location_of_an_object_is_raised_and_the_others_are_lowered(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    """Only the sum learns of it, and of one object one location."""
    model = build(build_detector, "light").train()
    head, feats = model.bbox_head, model.extract_feat(torch.rand(2, 3, 64, 64))
    located = head.embed(feats)
    truth = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 56, 56]]), labels=torch.tensor([1])
    )

    def loss(unique: Sequence[torch.Tensor]) -> torch.Tensor:
        # at first both words are absent everywhere
        logits = [torch.full_like(each.expand(-1, 2, -1, -1), -4) for each in unique]
        boxes, truths = (located.sides, located.side_logits), [truth] * 2
        losses = head.loss_by_feat(logits, *boxes, truths, [{}] * 2, unique=unique)
        return losses["loss_unique"]

    flat = [torch.zeros_like(each).requires_grad_() for each in located.unique]
    taught = torch.autograd.grad(loss(flat), flat)
    for image in range(2):
        lowered = torch.cat([each[image].flatten() for each in taught])
        best = (lowered < 0).nonzero()
        # the cell with the centre, and all others whose boxes are of the object
        (centre,) = located.regions.centres[best[:, 0]]
        assert (centre - 32).abs().max() <= 16
        near = box_iou(located.regions.boxes[image], truth.bboxes)[:, 0] > 0.5
        near[best] = False
        assert near.any() and torch.equal(lowered > 0, near)
    # nothing else has a gradient of it
    names, weights = zip(*[(n, p) for n, p in head.named_parameters()])
    given = torch.autograd.grad(loss(located.unique), weights, allow_unused=True)
    learns = {n for n, grad in zip(names, given) if grad is not None}
    assert learns and all(".unique." in name for name in learns)


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
    assert all(len(boxes) == 50 for boxes in before)
    noise = (image[0] * 255).byte().permute(1, 2, 0).numpy()
    detector = KDEOV(model)
    (got,) = detector.open_vocabulary_detect(noise, WORDS, 0.1, 0.5, agnostic=agnostic)
    overlap = box_iou(got["boxes"], got["boxes"]).fill_diagonal_(0)
    # a location has a box for each word, or one
    assert len(got["boxes"]) > 10 and bool(overlap.max() < 0.99) is agnostic
    assert model.bbox_head.test_cfg.nms is None


def test_old_heads_have_no_new_weights(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    old = build(build_detector).state_dict()
    assert not any(".unique." in key or "depthwise" in key for key in old)
    new = build_detector(teacher=None, distill=None, **LIGHT).state_dict()
    assert any(".unique." in key for key in new)
