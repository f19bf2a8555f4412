"""The detector as a whole: its parts, losses, predictions, and threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmyolo.models.dense_heads import YOLOv8Head
from torch import Tensor

from kdeov_mm.clip.teacher import undo_normalisation
from kdeov_mm.models import KDEOVDetector, OVHead

from ..conftest import EMBED_DIMS, WORDS, make_sample, write_clip

Build = Callable[..., KDEOVDetector]
TRUTH = ([[8, 8, 40, 48], [30, 20, 62, 50]], [2, 0])
FUSION = dict(in_channels=[256, 512, 1024], text_dims=EMBED_DIMS, widen_factor=0.25)
FUSIONS = {
    "none": {},
    "film": {"fusion": dict(type="FiLMFusion", **FUSION)},
    "attention": {"fusion": dict(type="CrossAttentionFusion", **FUSION)},
}


def make_batch() -> tuple[Tensor, list[DetDataSample]]:
    torch.manual_seed(5)
    return torch.rand(2, 3, 64, 64), [
        make_sample(*TRUTH),
        make_sample(TRUTH[0], [1, 1]),
    ]


# ------------------------------------------------------- the frozen CLIP beside it


def test_the_clip_is_no_part_of_the_student(build_detector: Build) -> None:
    model = build_detector()
    images, samples = make_batch()
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    trained = [name for name, _ in model.named_parameters()]
    model.loss(images, samples)  # loads both towers
    assert {name: t.shape for name, t in model.state_dict().items()} == before
    assert [name for name, _ in model.named_parameters()] == trained
    kept = [*model.state_dict(), *trained, *dict(model.named_modules())]
    assert not any("teacher" in name or "text_encoder" in name for name in kept)


def test_without_teacher_a_working_detector_is_left(build_detector: Build) -> None:
    taught, alone = build_detector(), build_detector(teacher=None, distill=None)
    images, samples = make_batch()
    only = set(taught.state_dict()) - set(alone.state_dict())
    assert all(name.startswith("distill.") for name in only)
    alone.load_state_dict(
        {k: v for k, v in taught.state_dict().items() if k not in only}
    )
    assert set(alone.loss(images, samples)) == {"loss_cls", "loss_bbox", "loss_dfl"}
    assert len(alone.eval().predict(images, samples)) == 2


def test_distillation_without_its_teacher_is_refused(build_detector: Build) -> None:
    with pytest.raises(ValueError, match="need a `teacher`"):
        build_detector(teacher=None)


def test_distillation_of_bgr_pixels_is_refused(build_detector: Build) -> None:
    with pytest.raises(ValueError, match="bgr_to_rgb=True"):
        build_detector(**{"data_preprocessor.bgr_to_rgb": False})
    build_detector(
        **{"data_preprocessor.bgr_to_rgb": False}, teacher=None, distill=None
    )


@pytest.mark.parametrize(
    "mean, std",
    [
        ([0.0] * 3, [255.0] * 3),
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        (None, None),
    ],
)
def test_the_teacher_sees_the_image_as_rgb_in_0_to_1(
    build_detector: Build, mean: Any, std: Any
) -> None:
    model = build_detector(
        **{"data_preprocessor.mean": mean, "data_preprocessor.std": std}
    )
    bgr = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    data = model.data_preprocessor(
        dict(inputs=[bgr], data_samples=[make_sample(*TRUTH)]), training=True
    )
    shapes = [s.img_shape for s in data["data_samples"]]
    pixels = undo_normalisation(model.data_preprocessor, data["inputs"], shapes)
    torch.testing.assert_close(pixels[0], bgr.flip(0).float() / 255)


# ------------------------------------------------------------------------ loss


HEAD = dict(
    type="GlobalHead",
    projection=dict(
        type="GlobalProjection",
        in_channels=[256, 512, 1024],
        embed_dims=EMBED_DIMS,
        widen_factor=0.25,
    ),
)
COSINE = dict(cosine=dict(type="CosineDistance"))
LEARNERS: dict[str, dict[str, Any]] = {
    **FUSIONS,
    "unsupervised": {"bbox_head.supervised": False},
    "global head that learns nothing": {"global_head": HEAD},
    "global head": {
        "global_head": dict(
            HEAD, distances=COSINE, crops=0.5, calibrate=0.1, sources=("truth",)
        )
    },
    "grid boxes": {"bbox_head.head_module.type": "mmdet.GridHeadModule"},
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("boxes", [True, False], ids=["boxes", "no-boxes"])
def test_every_parameter_that_learns_gets_a_gradient(
    build_detector: Build, name: str, boxes: bool
) -> None:
    """Distributed training waits for ever for a parameter that gets none."""
    model = build_detector(**LEARNERS[name])
    images, samples = make_batch()
    losses = model.loss(images, samples if boxes else [make_sample(), make_sample()])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in learning.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in learning.values())
    still = {n.split(".")[0] for n, p in model.named_parameters() if n not in learning}
    allowed = {
        "unsupervised": {"bbox_head"},
        "global head that learns nothing": {"global_head"},
    }
    assert still == allowed.get(name, set())


def test_a_student_that_would_learn_nothing_is_refused(build_detector: Build) -> None:
    changes = {"bbox_head.supervised": False, "teacher": None, "distill": None}
    with pytest.raises(ValueError, match="nothing to learn"):
        build_detector(**changes).loss(*make_batch())
    idle = dict(type="RegionDistillation", distances={})
    distill = dict(_delete_=True, region=idle)
    changes = {"bbox_head.supervised": False, "distill": distill}
    with pytest.raises(ValueError, match="nothing to learn"):
        build_detector(**changes).loss(*make_batch())


def gradient_norm(model: KDEOVDetector, repeats: int) -> float:
    """Of a batch in which the same images come several times."""
    images, samples = make_batch()
    model.zero_grad()
    sum(
        model.loss(images.repeat(repeats, 1, 1, 1), samples * repeats).values()
    ).backward()
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


def test_the_gradient_does_not_depend_on_the_size_of_the_batch(
    build_detector: Build,
) -> None:
    """So clipping means the same for every batch."""
    relation = dict(type="RelationalDistance")
    contrast = dict(type="ContrastiveDistance")
    model = build_detector(
        **{
            "vocabulary.size": 6,
            "vocabulary.min_size": 6,
            "distill.region.distances": dict(
                COSINE, relation=relation, contrast=contrast
            ),
        }
    ).train()
    norms = [gradient_norm(model, repeats) for repeats in (1, 4, 32)]
    assert norms[0] > 0.1
    assert norms == pytest.approx([norms[0]] * 3, rel=0.01)


def test_a_loss_has_the_names_that_mmengine_sums(build_detector: Build) -> None:
    images, samples = make_batch()
    model = build_detector()
    total, log = model.parse_losses(model.loss(images, samples))
    regions = [f"loss_region_{name}" for name in model.distill["region"].distances]
    parts = ["loss_cls", "loss_bbox", "loss_dfl", *regions]
    assert regions
    assert set(log) == {"loss", *parts}
    torch.testing.assert_close(total, sum(log[name] for name in parts))


def test_training_lowers_the_loss_of_one_batch(build_detector: Build) -> None:
    model = build_detector(
        vocabulary=dict(size=6, min_size=6), teacher=None, distill=None
    )
    images, samples = make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(12):
        losses = model.loss(images, samples)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in history[0]:
        assert history[-1][name] < 0.9 * history[0][name], name


def test_bfloat16_training_has_the_same_losses(build_detector: Build) -> None:
    model = build_detector()
    images, samples = make_batch()
    found = []
    for half in (False, True):
        np.random.seed(0)  # the same words
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found.append(model.loss(images, samples))
    for name, value in found[0].items():
        assert found[1][name].item() == pytest.approx(value.item(), rel=0.05), name
    sum(found[1].values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("words", [("one word",), ("one word", "another")])
def test_few_words_are_enough_to_train_and_test(
    build_detector: Build, words: tuple[str, ...]
) -> None:
    model = build_detector()
    images = torch.rand(1, 3, 64, 64)
    sample = make_sample(TRUTH[0][:1], [len(words) - 1], words)
    losses = model.loss(images, [sample])
    assert all(value.isfinite() for value in losses.values())
    model.eval()(images, [make_sample(words=words)], mode="predict")


# ------------------------------------------------------------------ predictions


def test_predictions_carry_the_names_of_their_words(lively: KDEOVDetector) -> None:
    with torch.no_grad():
        (sample,) = lively(torch.rand(1, 3, 64, 64), [make_sample()], mode="predict")
    found = sample.pred_instances
    assert len(found) > 50
    assert found.label_names == [WORDS[i] for i in found.labels]


def test_predictions_are_in_pixels_of_the_file(lively: KDEOVDetector) -> None:
    images = torch.rand(1, 3, 64, 64)
    small, large = make_sample(), make_sample()
    large.set_metainfo(dict(ori_shape=(128, 192), scale_factor=(1 / 3, 0.5)))
    with torch.no_grad():
        a, b = (
            lively(images, [s], mode="predict")[0].pred_instances
            for s in (small, large)
        )
    assert len(a) > 50
    grown = a.bboxes * torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(b.bboxes, grown, atol=1e-2, rtol=1e-4)


def test_a_test_batch_with_two_vocabularies_is_refused(lively: KDEOVDetector) -> None:
    samples = [make_sample(), make_sample(words=("other", "words"))]
    with pytest.raises(ValueError, match="one vocabulary, got 2"):
        lively(torch.rand(2, 3, 64, 64), samples, mode="predict")


def test_a_teacher_of_another_clip_is_refused(
    build_detector: Build, tmp_path: Path
) -> None:
    other = write_clip(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="the teacher is .*other.*same `model`"):
        build_detector(**{"teacher.model": other})


def test_a_head_of_another_dimension_than_the_clips_is_refused(
    build_detector: Build,
) -> None:
    with pytest.raises(ValueError, match=f"set it to {EMBED_DIMS}"):
        build_detector(**{"bbox_head.head_module.embed_dims": EMBED_DIMS * 2})


def test_samples_of_two_data_sets_share_a_batch(build_detector: Build) -> None:
    """Only one of the two leaves a word unverified."""
    model = build_detector(teacher=None, distill=None)
    some, more = make_sample(*TRUTH, words=WORDS[:3]), make_sample(*TRUTH, words=WORDS)
    losses = model.loss(torch.rand(2, 3, 64, 64), [some, more])
    assert losses["loss_cls"].isfinite() and losses["loss_cls"] > 0


def test_initialising_leaves_parameters_where_they_are(build_detector: Build) -> None:
    """mmengine moves the model to its device first and initialises it then."""
    model = build_detector()
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    model.init_weights()
    assert pointers == {name: p.data_ptr() for name, p in model.named_parameters()}


# ---------------------------------------------------------- calls are independent


# words, and what differs from the model's test_cfg; the last is mmyolo's own code
ASKED: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (WORDS, dict(score_thr=0.4, nms_pre=1000)),
    (WORDS[::-1][:2], dict(score_thr=0.5, nms_pre=1000)),
    (((WORDS[4], WORDS[1]), *WORDS[2:4]), dict(score_thr=0.4, max_per_img=20)),
    (WORDS[:3], dict(multi_label=False, score_thr=0.4, nms_pre=1000)),
    (WORDS[1:], dict(multi_label=False, score_thr=0.3, nms_pre=1000)),
]
IMAGES = [torch.rand(1, 3, *size) for size in ((64, 64), (64, 96))]


@torch.no_grad()
def answer(model: KDEOVDetector, which: int) -> tuple[Tensor, list[str]]:
    """Rows of score and box, and names, of one call with its own thresholds."""
    words, change = ASKED[which]
    image = IMAGES[which % 2]
    sample = make_sample(words=words, shape=(64, image.shape[3]))
    cfg = Config({**model.bbox_head.test_cfg, **change})
    (result,) = model.predict(image, [sample], cfg=cfg)
    found = result.pred_instances
    rows = torch.cat([found.scores[:, None], found.bboxes], 1)
    return rows, found.label_names


def same(one: tuple[Tensor, list[str]], other: tuple[Tensor, list[str]]) -> bool:
    return torch.equal(one[0], other[0]) and one[1] == other[1]


def test_a_call_with_its_own_thresholds_changes_no_other(lively: KDEOVDetector) -> None:
    alone = [answer(lively, i) for i in range(len(ASKED))]
    assert all(len(rows) >= 20 for rows, _ in alone)
    assert len({len(rows) for rows, _ in alone}) == len(ASKED)
    cfg = dict(lively.bbox_head.test_cfg)
    for first in range(len(ASKED)):
        for second in range(len(ASKED)):
            answer(lively, first)
            assert same(answer(lively, second), alone[second])
    assert dict(lively.bbox_head.test_cfg) == cfg


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (0, 3), (3, 4)])
def test_two_threads_on_one_detector_do_not_influence_each_other(
    lively: KDEOVDetector, pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They meet where each has its scores, and again before mmyolo's own code."""
    alone = [answer(lively, i) for i in pair]
    barrier = threading.Barrier(2)
    met = []

    def meet(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
            met.append(name)
            barrier.wait(timeout=60)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, wait)

    meet(OVHead, "predict_by_feat")
    if min(pair) > 2:  # both of them
        meet(YOLOv8Head, "predict_by_feat")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(6):
            found = [pool.submit(answer, lively, i) for i in pair]
            for future, wanted in zip(found, alone, strict=True):
                assert same(future.result(timeout=60), wanted)
    assert len(met) == (24 if min(pair) > 2 else 12)
