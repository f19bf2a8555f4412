"""Scores by embedding . text, for any words; the loss of verified words."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmyolo.models.dense_heads import YOLOv8Head
from torch import Tensor
from torchvision.ops import box_iou

from kdeov_mm.datasets import shapes
from kdeov_mm.models import (
    HeadInput,
    KDEOVDetector,
    OVHead,
    RandomVocabulary,
    TextEmbeds,
)

from ..conftest import EMBED_DIMS, WORDS, enliven, loss_and_regions, make_sample

Build = Callable[..., KDEOVDetector]
GROUP_NORM = dict(type="GN", num_groups=8, _delete_=True)
TRUTH = ([[8, 8, 40, 48], [30, 20, 62, 50]], [2, 0])


@pytest.fixture(scope="module")
def head(build_detector: Build) -> OVHead:
    return build_detector(teacher=None, distill=None).bbox_head.train()


def make_feats(batch: int = 2) -> list[Tensor]:
    """P3, P4, P5 of 64 px images, at the neck's widths."""
    return [
        torch.randn(batch, channels, 64 // stride, 64 // stride)
        for channels, stride in ((64, 8), (128, 16), (256, 32))
    ]


def make_text(words: int) -> Tensor:
    return F.normalize(torch.randn(words, EMBED_DIMS), dim=-1)


def head_input(feats: list[Tensor], vectors: Tensor) -> HeadInput:
    return HeadInput(feats, TextEmbeds(vectors))


def losses_of(
    head: OVHead, logits: list[Tensor], samples: list[DetDataSample]
) -> dict[str, Tensor]:
    """The head's losses for logits of our own choice."""
    with torch.no_grad():
        _, sides, side_logits = head.head_module.embed(make_feats(len(samples)))
    truth = [s.gt_instances for s in samples]
    metas = [s.metainfo for s in samples]
    return head.loss_by_feat(logits, sides, side_logits, truth, metas, None)


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("l2_norm", [False, True])
def test_logits_equal_the_slow_formula(build_detector: Build, l2_norm: bool) -> None:
    changes = {"bbox_head.head_module.l2_norm": l2_norm}
    module = build_detector(**changes).bbox_head.head_module.eval()
    module.classifier.logit_scale.data.fill_(0.7)
    module.classifier.bias.data.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    feats, text = make_feats(), make_text(3)
    logits = module(head_input(feats, text))[0]
    for level, (feat, got) in enumerate(zip(feats, logits, strict=True)):
        embeds = module.cls_preds[level](feat)
        for b, k, y, x in ((0, 0, 0, 0), (1, 2, 1, 0), (0, 1, 1, 1)):
            e = embeds[b, :, y, x]
            e = e / e.norm() if l2_norm else e / math.sqrt(EMBED_DIMS)
            wanted = math.exp(0.7) * (e @ text[k]) + module.classifier.bias[level]
            torch.testing.assert_close(got[b, k, y, x], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("words", [1, 2, 90])
def test_there_are_as_many_scores_as_words(head: OVHead, words: int) -> None:
    feats, text = make_feats(), make_text(words)
    logits = head.head_module(head_input(feats, text))[0]
    assert [m.shape for m in logits] == [(2, words, s, s) for s in (8, 4, 2)]
    losses, locations = loss_and_regions(
        head, feats, text, [make_sample(TRUTH[0], [0, words - 1]), make_sample()]
    )
    assert all(value.isfinite() for value in losses.values())
    assert locations.embeds.shape == (2, 84, EMBED_DIMS)


def test_a_batch_norm_head_is_linear_so_that_it_folds(build_detector: Build) -> None:
    """Linear from the projection's input to the logits; GroupNorm and L2 are not."""
    text = make_text(4)

    def deviation(**changes: Any) -> float:
        module = build_detector(**changes).bbox_head.head_module
        branch = module.cls_preds[0][-1]
        branch(torch.randn(8, branch.project.in_channels, 9, 9) * 3 + 1)
        module.eval()

        def logits(x: Tensor) -> Tensor:
            e = branch(x)
            scaled = F.normalize(e, dim=1) if module.l2_norm else e / EMBED_DIMS**0.5
            return module.classify([scaled], text)[0]

        a, b = torch.randn(2, 1, branch.project.in_channels, 5, 5)
        mixed = logits(0.3 * a + 0.7 * b)
        return (mixed - 0.3 * logits(a) - 0.7 * logits(b)).abs().max().item()

    name = "bbox_head.head_module"
    plain = {f"{name}.l2_norm": False}
    assert deviation(**plain) < 1e-4
    assert deviation() > 1e-2
    assert deviation(**plain, **{f"{name}.projection_norm": GROUP_NORM}) > 1e-2


def test_the_first_scores_expect_yolov8s_number_of_objects(
    build_detector: Build,
) -> None:
    """Each level of an image of `prior_size` with `prior_words` expects five."""
    module = build_detector(
        **{
            "bbox_head.head_module.prior_words": 20,
            "bbox_head.head_module.prior_size": 320,
        }
    ).bbox_head.head_module
    locations = torch.tensor([(320 / s) ** 2 for s in module.featmap_strides])
    expected = module.classifier.bias.sigmoid() * locations * 20
    torch.testing.assert_close(expected, torch.full((3,), 5.0), rtol=0.02, atol=0)


def test_temperature_and_bias_are_learned(head: OVHead) -> None:
    assert head.head_module.classifier.logit_scale.item() == pytest.approx(
        math.log(1 / 0.07)
    )
    head.zero_grad()
    losses, _ = loss_and_regions(
        head, make_feats(1), make_text(3), [make_sample(*TRUTH)]
    )
    sum(losses.values()).backward()
    assert head.head_module.classifier.logit_scale.grad.abs() > 0
    assert (head.head_module.classifier.bias.grad.abs() > 0).all()


# --------------------------------------------- words do not know of each other


def raw_logits(model: KDEOVDetector, words: tuple[str, ...]) -> Tensor:
    torch.manual_seed(1)
    samples = [make_sample(words=words)] * 2
    with torch.no_grad():
        said = model(torch.rand(2, 3, 64, 64), samples, mode="tensor")
        logits, _ = said["predictions"]
    return torch.cat([m.flatten(2) for m in logits], 2)  # (B, K, N)


def found_by_word(model: KDEOVDetector, words: tuple[str, ...]) -> dict[str, Tensor]:
    """Word -> (n, 5) scores and boxes, best first."""
    torch.manual_seed(1)
    with torch.no_grad():
        (sample,) = model(
            torch.rand(1, 3, 64, 64), [make_sample(words=words)], mode="predict"
        )
    found = sample.pred_instances
    rows = torch.cat([found.scores[:, None], found.bboxes], 1)
    assert found.label_names == [words[i] for i in found.labels]
    return {w: rows[found.labels == i] for i, w in enumerate(words)}


ORDER = [4, 2, 0, 5, 1, 3]
SHUFFLED = tuple(WORDS[i] for i in ORDER)
EXTENDED = ("a new word", *WORDS[::-1], "another", "and a third")


def test_permuted_words_permute_the_logits(lively: KDEOVDetector) -> None:
    torch.testing.assert_close(
        raw_logits(lively, SHUFFLED), raw_logits(lively, WORDS)[:, ORDER]
    )


def test_more_words_leave_the_logits_of_the_old_ones(lively: KDEOVDetector) -> None:
    where = [EXTENDED.index(word) for word in WORDS]
    extended = raw_logits(lively, EXTENDED)[:, where]
    torch.testing.assert_close(extended, raw_logits(lively, WORDS))


@pytest.mark.parametrize("words", [SHUFFLED, EXTENDED, WORDS[3:4]])
def test_a_word_is_found_the_same_whatever_else_is_asked(
    lively: KDEOVDetector, words: tuple[str, ...]
) -> None:
    alone, together = found_by_word(lively, WORDS), found_by_word(lively, words)
    assert sum(map(len, alone.values())) > 100
    for word in set(words) & set(WORDS):
        torch.testing.assert_close(together[word], alone[word], atol=1e-3, rtol=1e-4)
    scores = torch.cat([rows[:, 0] for rows in alone.values()])
    assert scores.std() > 0.01  # else all words would score alike


def test_batched_equals_single(lively: KDEOVDetector) -> None:
    images = torch.rand(3, 3, 64, 64)

    def found(batch: Tensor) -> list[InstanceData]:
        samples = [make_sample() for _ in batch]
        with torch.no_grad():
            results = lively(batch, samples, mode="predict")
        return [sample.pred_instances for sample in results]

    for i, together in enumerate(found(images)):
        (alone,) = found(images[i : i + 1])
        assert len(alone) > 10
        assert torch.equal(together.labels, alone.labels)
        torch.testing.assert_close(together.scores, alone.scores)
        torch.testing.assert_close(together.bboxes, alone.bboxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("train", [True, False])
def test_the_last_product_is_folded_where_that_is_right_and_cheaper(
    build_detector: Build, train: bool
) -> None:
    """Of C channels and D dimensions where C * K <= D * (C + K); not in training."""
    plain = {"bbox_head.head_module.l2_norm": False}
    module = build_detector(**plain).bbox_head.head_module.train(train)
    channels = module.cls_preds[0][-1].project.in_channels
    assert channels > EMBED_DIMS
    most = channels * EMBED_DIMS // (channels - EMBED_DIMS)
    feats = make_feats()
    for words, width in ((most, channels), (most + 1, EMBED_DIMS)):
        text = make_text(words)
        output = module.split_last(head_input(feats, text))
        assert output.hidden[0].shape[1] == (EMBED_DIMS if train else width)
        wanted = module.classify(module.embed(feats)[0], text)
        for got, level in zip(output.logits(), wanted, strict=True):
            torch.testing.assert_close(got, level, atol=1e-3, rtol=1e-3)


# ------------------------------------------------------------------------ loss


def test_the_class_loss_by_hand(head: OVHead) -> None:
    """Binary cross-entropy of every word at every location, unreduced."""
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]])
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.5]]])
    wanted = torch.tensor([[[2, 4], [4 / 3, 2]]]).log() * head.loss_cls.loss_weight
    torch.testing.assert_close(head.loss_cls(logits, targets), wanted)


def test_words_that_are_not_verified_add_nothing_to_the_loss(head: OVHead) -> None:
    """Of images without boxes: the sum over locations, and over verified words."""
    logits = [torch.randn(2, 5, s, s) for s in (8, 4, 2)]
    verified = torch.tensor([[True, True, False, True, False], [True] * 5])
    samples = [make_sample(verified=row) for row in verified]
    wanted = [
        F.softplus(level.double()).sum((2, 3))[verified].sum() for level in logits
    ]
    loss = losses_of(head, logits, samples)["loss_cls"]
    wanted = sum(wanted) * head.loss_cls.loss_weight  # no objects: divided by 1
    torch.testing.assert_close(loss, wanted.float())
    none = [make_sample(verified=torch.zeros(5, dtype=torch.bool))] * 2
    assert 0 <= losses_of(head, logits, none)["loss_cls"] < 1e-9
    far = [torch.where(verified[:, :, None, None], level, 1e4) for level in logits]
    assert torch.equal(losses_of(head, far, samples)["loss_cls"], loss)


def test_the_class_loss_of_half_logits_is_summed_in_full_precision(
    head: OVHead,
) -> None:
    logits = [torch.randn(1, 7, s, s).bfloat16() for s in (8, 4, 2)]
    samples = [make_sample(*TRUTH)]
    torch.manual_seed(4)
    half = losses_of(head, logits, samples)["loss_cls"]
    torch.manual_seed(4)
    full = losses_of(head, [level.float() for level in logits], samples)["loss_cls"]
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


@pytest.mark.parametrize("boxes", [True, False], ids=["boxes", "no-boxes"])
def test_losses_are_the_parents_without_its_factor_of_the_batch(
    head: OVHead, boxes: bool
) -> None:
    text = make_text(3)
    located = head.embed(make_feats())
    first = make_sample(*TRUTH) if boxes else make_sample()
    samples = [first, make_sample()]
    losses = head.losses(located, text, samples)
    parent = copy.copy(head)
    parent.num_classes = parent.assigner.num_classes = 3
    wanted = YOLOv8Head.loss_by_feat(
        parent,
        head.head_module.classify(located.embeds, text),
        located.sides,
        located.side_logits,
        [s.gt_instances for s in samples],
        [s.metainfo for s in samples],
    )
    for name, value in losses.items():
        torch.testing.assert_close(value, wanted[name] / 2)
    assert all((value > 0) == (boxes or k == "loss_cls") for k, value in losses.items())


def test_the_class_loss_asks_for_the_labelled_word(head: OVHead) -> None:
    """Higher scores of the right word lower the loss, of a wrong word raise it."""

    def loss(word: int) -> float:
        torch.manual_seed(2)
        logits = [torch.zeros(1, 3, s, s) for s in (8, 4, 2)]
        for level in logits:
            level[:, word] += 3
        sample = make_sample(TRUTH[0][:1], [1])
        return losses_of(head, logits, [sample])["loss_cls"].item()

    assert loss(1) < loss(0) == pytest.approx(loss(2))


def grads_of_masked(head: OVHead, dtype: torch.dtype) -> Tensor:
    """Gradient (B, K, N) where image 0 verifies words 0 to 2, image 1 all five."""
    logits = [
        torch.randn(2, 5, s, s, dtype=dtype, requires_grad=True) for s in (8, 4, 2)
    ]
    verified = torch.tensor([True, True, True, False, False])
    every = torch.ones_like(verified)
    samples = [make_sample(*TRUTH, verified=row) for row in (verified, every)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = losses_of(head, logits, samples)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    return torch.cat([m.grad.flatten(2) for m in logits], 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_that_nobody_verified_get_no_gradient(
    head: OVHead, dtype: torch.dtype
) -> None:
    grads = grads_of_masked(head, dtype)
    assert grads.isfinite().all()
    assert (grads[0, 3:] == 0).all()
    assert (grads[0, :3].abs().sum(-1) > 0).all()
    assert (grads[1].abs().sum(-1) > 0).all()


def test_a_word_that_is_not_verified_is_learnt_where_its_box_is(head: OVHead) -> None:
    """LVIS: of a class that is not exhaustively annotated, boxes count, absence not."""
    logits = [torch.randn(1, 5, s, s, requires_grad=True) for s in (8, 4, 2)]
    verified = torch.tensor([False, True, True, True, True])
    losses = losses_of(head, logits, [make_sample(*TRUTH, verified=verified)])
    losses["loss_cls"].backward()
    grads = torch.cat([m.grad.flatten(2) for m in logits], 2)[0]  # (K, N)
    assert 0 < (grads[0] != 0).sum() <= 10  # the locations matched with its box
    assert (grads[1:] != 0).all()


@pytest.mark.parametrize("drawn", [0, 12])
def test_a_federated_image_teaches_verified_and_drawn_words_alone(
    head: OVHead, drawn: int
) -> None:
    """Two classes are verified of 200: one is there, one is listed as absent."""
    many = tuple(f"word {i}" for i in range(200))
    about = dict(verified_labels=(7, 30), label_weights=(1.0,) * 200)
    sample = make_sample(TRUTH[0][:1], [7], many, **about)
    draw = RandomVocabulary(size=100, min_size=100, federated=drawn)
    words, samples = draw([sample])
    logits = [torch.randn(1, len(words), s, s, requires_grad=True) for s in (8, 4, 2)]
    losses_of(head, logits, samples)["loss_cls"].backward()
    grads = torch.cat([m.grad.flatten(2) for m in logits], 2)[0]  # (K, N)
    taught = {words[i][0] for i in grads.abs().sum(1).nonzero().flatten().tolist()}
    assert len(words) == 100 and {"word 7", "word 30"} <= taught
    assert drawn <= len(taught) <= drawn + 2


def test_no_word_is_absent_where_an_object_has_no_label(head: OVHead) -> None:
    """But where a box is matched, its word is learnt all the same."""
    torch.manual_seed(3)
    located, text = head.embed(make_feats(2)), make_text(5)
    samples = [make_sample(*TRUTH), make_sample(*TRUTH)]
    (gradient,) = torch.autograd.grad(
        head.losses(located, text, samples)["loss_cls"],
        located.embeds[0],
        retain_graph=True,
    )
    marked = located.regions.unlabelled
    assert not marked.any() and marked.shape == located.regions.sharpness.shape
    marked[1] = True
    (other,) = torch.autograd.grad(
        head.losses(located, text, samples)["loss_cls"], located.embeds[0]
    )
    torch.testing.assert_close(other[0], gradient[0])
    learns = other[1].abs().sum(0) > 0
    assert 0 < learns.sum() < 20 and (gradient[1].abs().sum(0) > 0).all()
    torch.testing.assert_close(other[1][:, learns], gradient[1][:, learns])


def test_masking_one_batch_leaves_the_next_alone(head: OVHead) -> None:
    torch.manual_seed(3)
    feats, text = make_feats(1), make_text(5)
    before, _ = loss_and_regions(head, feats, text, [make_sample(*TRUTH)])
    verified = torch.tensor([True, True, True, False, False])
    masked, _ = loss_and_regions(
        head, feats, text, [make_sample(*TRUTH, verified=verified)]
    )
    after, _ = loss_and_regions(head, feats, text, [make_sample(*TRUTH)])
    assert masked["loss_cls"] < before["loss_cls"]
    assert after == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(
    head: OVHead, size: float, dtype: torch.dtype
) -> None:
    logits = [
        torch.full((1, 3, s, s), size, dtype=dtype, requires_grad=True)
        for s in (8, 4, 2)
    ]
    losses = losses_of(head, logits, [make_sample(*TRUTH)])
    losses["loss_cls"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(m.grad.isfinite().all() for m in logits)


def test_locations_carry_gradient_in_embeddings_only(head: OVHead) -> None:
    _, locations = loss_and_regions(
        head, make_feats(1), make_text(3), [make_sample(*TRUTH)]
    )
    assert locations.embeds.requires_grad
    rest = (locations.boxes, locations.sharpness, locations.centres)
    assert not any(tensor.requires_grad for tensor in rest)


def test_locations_are_those_of_the_detections(build_detector: Build) -> None:
    """Boxes and scores at each location are what test-time decoding gives."""
    model = build_detector(teacher=None, distill=None)
    head, feats, text = model.bbox_head, make_feats(1), make_text(3)
    head.train()
    for module in head.modules():  # the same statistics in both modes
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    _, locations = loss_and_regions(head, feats, text, [make_sample(*TRUTH)])
    head.eval()
    head.test_cfg.update(multi_label=True, score_thr=0, nms_pre=10**6)
    meta = make_sample(shape=(10**4, 10**4)).metainfo
    (found,) = head.predict_by_feat(
        *head(head_input(feats, text)), batch_img_metas=[meta], with_nms=False
    )
    boxes, scale = (
        locations.boxes[0].clamp(min=0),
        head.head_module.classifier.logit_scale.exp(),
    )
    bias = head.head_module.classifier.bias.repeat_interleave(torch.tensor([64, 16, 4]))
    scores = (scale * locations.embeds[0] @ text.T + bias[:, None]).sigmoid()
    for score, label, box in zip(
        found.scores[::20], found.labels[::20], found.bboxes[::20], strict=True
    ):
        nearest = (scores[:, label] - score).abs().argmin()
        torch.testing.assert_close(scores[nearest, label], score)
        torch.testing.assert_close(boxes[nearest], box, atol=1e-3, rtol=1e-4)
    inside = (locations.centres > 0).all() and (locations.centres < 64).all()
    assert inside and ((locations.sharpness > 0) & (locations.sharpness <= 1)).all()


def test_grid_boxes_overlap_most_objects_of_the_world_by_half(
    build_detector: Build,
) -> None:
    """So they are not why the original design finds nothing."""
    model = build_detector(
        **{"bbox_head.head_module.type": "mmdet.GridHeadModule"},
        teacher=None,
        distill=None,
    )
    head, feats = model.bbox_head, model.extract_feat(torch.rand(1, 3, 160, 160))
    _, sides, _ = head.head_module.embed(feats)
    _, locations = loss_and_regions(head, feats, make_text(6), [make_sample()])
    assert all((s == 1.5).all() for s in sides)
    scenes = [shapes.draw_scene(shapes.scene_rng(3, 1, i)) for i in range(60)]
    objects = torch.from_numpy(np.concatenate([s.boxes for s in scenes]))
    best = box_iou(objects, locations.boxes[0]).amax(1)
    assert (best >= 0.5).float().mean() > 0.93  # 0.97 of the validation images
    assert (best >= 0.75).float().mean() < 0.2


def test_unsupervised_leaves_no_loss_of_boxes(build_detector: Build) -> None:
    model = build_detector(**{"bbox_head.supervised": False})
    feats = model.extract_feat(torch.rand(1, 3, 64, 64))
    sample = make_sample([[8.0, 8, 40, 40]], [1])
    losses, _ = loss_and_regions(model.bbox_head, feats, make_text(6), [sample])
    assert losses == {}


@pytest.mark.parametrize("with_shift", [True, False])
def test_film_by_class_is_film_of_the_embedding(
    build_detector: Build, with_shift: bool
) -> None:
    """<g(t) * e + b(t), t>, computed location by location and word by word."""
    adapter = dict(type="ClassFiLM", text_dims=EMBED_DIMS, shift=with_shift)
    model = build_detector(**{"bbox_head.head_module.adapter": adapter}).eval()
    head, text = model.bbox_head.head_module, make_text(5)
    adapter = head.classifier.adapter
    plain = head.classify([torch.randn(2, EMBED_DIMS, 3, 3)] * 3, text)
    for layer in (adapter.modulate[0], adapter.modulate[2]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    embeds = [torch.randn(2, EMBED_DIMS, 3, 3)] * 3
    logits = head.classify(embeds, text)
    assert plain[0].shape == logits[0].shape
    scale = adapter.modulate(text)[:, :EMBED_DIMS]  # (K, D)
    shift = adapter.modulate(text)[:, EMBED_DIMS:] if with_shift else 0 * scale
    for k, word in enumerate(text):
        film = embeds[1] * (1 + scale[k])[:, None, None] + shift[k][:, None, None]
        slow = head.classifier.logit_scale.exp() * torch.einsum(
            "bdhw,d->bhw", film, word
        )
        torch.testing.assert_close(logits[1][:, k], slow + head.classifier.bias[1])
    alone = head.classify(embeds, text[2:3])
    torch.testing.assert_close(alone[0][:, 0], logits[0][:, 2])


@pytest.mark.parametrize("shift", [True, False])
def test_film_by_class_is_the_identity_at_the_start(
    build_detector: Build, shift: bool
) -> None:
    adapter = dict(type="ClassFiLM", text_dims=EMBED_DIMS, shift=shift)
    film = build_detector(**{"bbox_head.head_module.adapter": adapter})
    text = make_text(4)
    vectors, offsets = film.bbox_head.head_module.classifier.adapter(text)
    assert torch.equal(vectors, text) and not offsets.any()


# ------------------------------------------------------------- folding, many words


@pytest.mark.parametrize(
    "adapter", [None, dict(type="ClassFiLM", text_dims=EMBED_DIMS)]
)
def test_folded_and_unfolded_scores_are_the_same(
    build_detector: Build, adapter: dict[str, Any] | None
) -> None:
    model = enliven(
        build_detector(**{"bbox_head.head_module.adapter": adapter}, teacher=None,
                       distill=None)
    )  # fmt: skip
    module, feats, text = model.bbox_head.head_module, make_feats(2), make_text(7)
    assert module.folds
    folded, sides = module(head_input(feats, text))
    embeds, wanted = module.embed(feats)
    for a, b in zip(folded, module.classify(embeds, text), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(sides, wanted, strict=True))
    layers = module.split_last(head_input(feats, text)).layers
    # of 80 features, and a 1, divided by the length
    assert [(k.shape, b.shape) for k, b in layers] == [((7, 81), (7,))] * 3


def test_nothing_folds_in_training(build_detector: Build) -> None:
    """The statistics of BatchNorm are those of the batch, and have a gradient."""
    module = build_detector().bbox_head.head_module
    assert module.eval().folds and not module.train().folds


def head_outputs(words: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(seed)
    sizes = (16, 8, 4)
    logits = [torch.randn(2, words, s, s) * 2.5 - 4 for s in sizes]
    return logits, [torch.rand(2, 4, s, s) * 3 for s in sizes]


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("nms_pre, most", [(30_000, 300), (500, 300), (30_000, 5)])
@pytest.mark.parametrize("words", [1, 5, 300])
def test_boxes_are_those_of_the_parents_post_processing(
    head: OVHead, words: int, nms_pre: int, most: int, rescale: bool
) -> None:
    logits, sides = head_outputs(words, seed=words)
    cfg = Config(
        dict(multi_label=True, score_thr=0.001, nms_pre=nms_pre, max_per_img=most,
             nms=dict(type="nms", iou_threshold=0.7))
    )  # fmt: skip
    meta = dict(ori_shape=(50, 100), scale_factor=(2.0, 1.5))
    metas = [meta, dict(meta, pad_param=(0, 0, 8, 8))]
    got = head.predict_by_feat(
        logits, sides, batch_img_metas=metas, cfg=cfg, rescale=rescale
    )
    head.num_classes = words
    wanted = YOLOv8Head.predict_by_feat(
        head, logits, sides, batch_img_metas=metas, cfg=cfg, rescale=rescale
    )
    for a, b in zip(got, wanted, strict=True):
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.scores, b.scores)
        same = (a.labels == b.labels) & ((a.bboxes - b.bboxes).abs().amax(1) < 1e-3)
        # the parent moves classes apart in single precision: a box on the edge of
        # the threshold may differ
        assert same.float().mean() > 0.99


def test_nothing_above_the_threshold_is_no_box(head: OVHead) -> None:
    logits, sides = head_outputs(5, seed=0)
    cfg = Config(
        dict(multi_label=True, score_thr=0.5, nms_pre=100, max_per_img=10,
             nms=dict(type="nms", iou_threshold=0.7))
    )  # fmt: skip
    metas = [dict(ori_shape=(50, 100), scale_factor=(2.0, 1.5))] * 2
    found = head.predict_by_feat(
        [m - 100 for m in logits], sides, batch_img_metas=metas, cfg=cfg
    )
    assert [len(f) for f in found] == [0, 0]


@pytest.mark.parametrize(
    "change",
    [
        dict(multi_label=False),
        dict(score_thr=-1.0),
        dict(score_thr=0.0),
        dict(nms=dict(type="nms", iou_threshold=0.7, class_agnostic=True)),
        dict(nms_pre=10),
    ],
)
def test_unusual_settings_are_the_parents(head: OVHead, change: dict[str, Any]) -> None:
    logits, sides = head_outputs(5, seed=0)
    settings = dict(multi_label=True, score_thr=0.001, nms_pre=1000, max_per_img=300,
                    nms=dict(type="nms", iou_threshold=0.7))  # fmt: skip
    cfg = Config({**settings, **change})
    metas = [dict(ori_shape=(200, 200), scale_factor=(1.0, 1.0))] * 2
    got = head.predict_by_feat(logits, sides, batch_img_metas=metas, cfg=cfg)
    head.num_classes = 5
    wanted = YOLOv8Head.predict_by_feat(
        head, logits, sides, batch_img_metas=metas, cfg=cfg
    )
    for a, b in zip(got, wanted, strict=True):
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.scores, b.scores)


@pytest.mark.parametrize("cap", [-1, None])
def test_without_a_cap_no_box_is_lost(head: OVHead, cap: int | None) -> None:
    """mmdet cuts the list at the cap, so that -1 would be all boxes but the last."""
    logits, sides = head_outputs(5, seed=0)
    cfg = Config(
        dict(multi_label=True, score_thr=0.001, nms_pre=10**5, max_per_img=cap,
             nms=dict(type="nms", iou_threshold=0.7))
    )  # fmt: skip
    metas = [dict(ori_shape=(200, 200), scale_factor=(1.0, 1.0))] * 2
    found = head.predict_by_feat(logits, sides, batch_img_metas=metas, cfg=cfg)
    assert cfg.max_per_img == cap
    cfg.max_per_img = 10**6
    wanted = head.predict_by_feat(logits, sides, batch_img_metas=metas, cfg=cfg)
    assert [*map(len, found)] == [*map(len, wanted)]
