"""The student of masks: its losses, its two heads, regions, windows and answers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.structures import PixelData
from torch import Tensor

from kdeov_mm import KDEOV
from kdeov_mm.datasets.segmentation import BACKGROUND, IGNORED
from kdeov_mm.models import (
    ClosedSegHead,
    ContrastiveDistance,
    OpenSegHead,
    RelationalDistance,
    SegStudent,
    TextEmbeds,
    label_maps,
    segmentor,
)
from kdeov_mm.models.label_maps import POINTS, FullSize, label_pixels, pixel_regions
from kdeov_mm.models.segmentor import ProjectedTeacher

from ..conftest import EMBED_DIMS, WORDS, make_sample, match

LEAVES = ("shapes", "shapes_document", "shapes_dense")


@pytest.fixture
def build(load_config: Callable[..., Config]) -> Callable[..., SegStudent]:
    """The student of a config around the tiny CLIP."""

    def make(name: str = "shapes", **changes: Any) -> SegStudent:
        cfg = load_config(f"../seg/seg_{name}.py")
        cfg.merge_from_dict({f"model.{key}": v for key, v in changes.items()})
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.cfg = cfg
        return model

    return make


def labelled(labels: Tensor, words: Sequence[str] = WORDS, **meta: Any) -> SampleList:
    """Samples with label maps (B, H, W)."""
    samples = []
    for own in labels:
        sample = make_sample(words=words, shape=tuple(own.shape), **meta)
        sample.gt_sem_seg = PixelData(sem_seg=own[None])
        samples.append(sample)
    return samples


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


class FixedTeacher:
    """A teacher whose embeddings of images are given."""

    is_live = True

    def __init__(self, embeds: Tensor) -> None:
        self.embeds = embeds

    def for_batch(self, *_: Any) -> "FixedTeacher":
        return self

    def images(self) -> Tensor:
        return self.embeds

    def captions(self, captions: Sequence[str]) -> Tensor:
        return self.embeds


# ------------------------------------------------------------------------ losses


def test_the_documents_loss_is_its_formula(build: Callable[..., SegStudent]) -> None:
    weights = {
        "distill.whole.distances.contrast.loss_weight": 0.5,
        "distill.local.distances.cosine.loss_weight": 0.5,
        "background_weight": 1.0,
    }
    model = build("shapes_document", **weights).train()
    # three images of 2 x 2 pixel embeddings, and the teacher's of the whole images
    embeds = F.normalize(torch.randn(3, EMBED_DIMS, 2, 2), dim=1)
    wanted = unit(3, EMBED_DIMS)
    model.embed_pixels = lambda inputs: embeds
    model.teacher = FixedTeacher(wanted)
    labels = torch.tensor([[[0, 3], [BACKGROUND, IGNORED]]] * 3)
    model.label_stride = 1
    samples = labelled(labels)
    losses = model.loss(torch.zeros(3, 3, 2, 2), samples)
    # global: InfoNCE of the mean pixel and the teacher's image, at temperature 0.07
    embeds, wanted = embeds.double(), wanted.double()  # by hand, in full precision
    means = F.normalize(embeds.mean((2, 3)), dim=1)
    logits = (means @ wanted.T / 0.07).tolist()
    contrast = 0.0
    for i, row in enumerate(logits):
        contrast -= row[i] - math.log(sum(math.exp(v) for v in row))
    # local: W = softmax(<C, F> / t), F_g = sum W F, and its cosine to C
    attended = 0.0
    for image, target in zip(embeds.flatten(2), wanted):  # (D, 4), (D,)
        scores = [float(target @ image[:, i]) / 0.07 for i in range(4)]
        total = sum(map(math.exp, scores))
        pooled = sum(math.exp(s) / total * image[:, i] for i, s in enumerate(scores))
        attended += 1 - float(F.cosine_similarity(pooled, target, dim=0))
    # cross-entropy of the labelled pixels, background as one more vector
    classifier = model.seg_head.classifier
    text = model.embed([(w,) for w in WORDS]).vectors.double()
    background = F.normalize(classifier.background, dim=0)
    vectors = torch.cat([text, background[None].double()])
    vectors = vectors * classifier.scale().item()
    entropy = 0.0
    for image in embeds:
        for (y, x), label in {(0, 0): 0, (0, 1): 3, (1, 0): len(WORDS)}.items():
            row = (vectors @ image[:, y, x]).tolist()
            entropy += math.log(sum(map(math.exp, row))) - row[label]
    assert losses["loss_global_contrast"].item() == pytest.approx(
        0.5 * contrast / 3, rel=1e-6
    )
    assert losses["loss_attention_cosine"].item() == pytest.approx(
        0.5 * attended / 3, rel=1e-6
    )
    assert losses["loss_seg"].item() == pytest.approx(entropy / 9, rel=1e-6)
    assert set(losses) == {
        "loss_seg",
        "loss_global_contrast",
        "loss_attention_cosine",
    }


@pytest.mark.parametrize("name", LEAVES)
def test_every_distillation_reaches_the_backbone(
    name: str, build: Callable[..., SegStudent]
) -> None:
    model = build(name, **{"seg_weight": 0.0}).train()
    if name == "shapes":
        # an image that is all object: it has a region from the first step on
        with torch.no_grad():
            model.seg_head.classifier.background.copy_(-torch.ones(EMBED_DIMS))
            model.proj.project.project.bn.bias.fill_(3.0)
    labels = torch.full((2, 64, 64), IGNORED)
    samples = labelled(labels)
    images = torch.rand(2, 3, 64, 64)
    for key, loss in model.loss(images, samples).items():
        if key == "loss_seg":
            continue
        model.zero_grad()
        loss.backward(retain_graph=True)
        reached = [p.grad for p in model.backbone.parameters() if p.grad is not None]
        assert any(grad.any() for grad in reached), key


def test_regions_are_in_pixels_of_the_input(
    build: Callable[..., SegStudent], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, strides = build("shapes").train(), []

    def seen(embeds: Tensor, background: Tensor | None, stride: int) -> Any:
        strides.append(stride * embeds.shape[-1])
        return pixel_regions(embeds, background, stride)

    monkeypatch.setattr(segmentor, "pixel_regions", seen)
    labels = torch.full((2, 64, 96), IGNORED)
    model.loss(torch.rand(2, 3, 64, 96), labelled(labels))
    assert strides == [96]


def test_pixels_without_a_label_teach_nothing(
    build: Callable[..., SegStudent],
) -> None:
    model = build("shapes_none")
    logits = torch.randn(1, len(WORDS) + 1, 2, 2, requires_grad=True)
    labels = torch.tensor([[[0, IGNORED], [BACKGROUND, IGNORED]]])
    model.label_stride, model.background_weight = 1, 0.25
    loss = model._cross_entropy(logits, labelled(labels))
    loss.backward()
    assert not logits.grad[0, :, :, 1].any()
    # the mean in which a pixel of background has a quarter of the weight
    shares = logits.log_softmax(1)
    by_hand = -(shares[0, 0, 0, 0] + 0.25 * shares[0, -1, 1, 0]) / 1.25
    torch.testing.assert_close(loss, by_hand)
    # whatever the number of words
    two = torch.randn(1, 2, 2, 2)
    loss = model._cross_entropy(two, labelled(labels.new_full((1, 2, 2), BACKGROUND)))
    torch.testing.assert_close(loss, -two.log_softmax(1)[:, 1].mean())
    # of none at all it is 0, with a gradient
    nothing = model._cross_entropy(logits, labelled(torch.full((1, 2, 2), IGNORED)))
    assert nothing.item() == 0 and nothing.requires_grad


def test_labels_are_compared_at_the_middle_of_the_pixels_of_the_map(
    build: Callable[..., SegStudent],
) -> None:
    model = build("shapes_none")
    labels = torch.randint(len(WORDS), (1, 8, 8))
    logits = torch.full((1, len(WORDS) + 1, 2, 2), -50.0)
    for y, x in ((2, 2), (2, 6), (6, 2), (6, 6)):
        logits[0, labels[0, y, x], y // 4, x // 4] = 50.0
    model.label_stride = 4
    assert model._cross_entropy(logits, labelled(labels)).item() < 1e-6


def test_half_precision_trains_and_says_the_same(
    build: Callable[..., SegStudent],
) -> None:
    model = build().train()
    labels = torch.randint(len(WORDS), (2, 64, 64))
    images = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(images, labelled(labels))
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_seg"].dtype == torch.float32
    plain = model.loss(images, labelled(labels))["loss_seg"]
    assert losses["loss_seg"].item() == pytest.approx(plain.item(), rel=0.05)


# ------------------------------------------------------------------------- heads


def test_an_open_head_answers_for_any_words_in_any_order() -> None:
    head = OpenSegHead(EMBED_DIMS, temperature=0.05)
    embeds, vectors = (
        F.normalize(torch.randn(2, EMBED_DIMS, 3, 4), dim=1),
        unit(5, EMBED_DIMS),
    )
    words = [(w,) for w in WORDS[:5]]
    logits = head(embeds, words, TextEmbeds(vectors))
    expected = torch.einsum("bdhw,kd->bkhw", embeds, vectors) * 20
    torch.testing.assert_close(logits[:, :5], expected)
    order = [3, 0, 4, 1, 2]
    permuted = head(embeds, [words[i] for i in order], TextEmbeds(vectors[order]))
    torch.testing.assert_close(permuted[:, :5], logits[:, order])
    torch.testing.assert_close(permuted[:, 5], logits[:, 5])


def test_a_closed_head_answers_for_its_own_words_and_no_others() -> None:
    head = ClosedSegHead(8, WORDS)
    embeds = torch.randn(1, 8, 2, 2)
    every = head(embeds, [(w,) for w in WORDS])
    some = head(embeds, [(WORDS[4],), (WORDS[1],)])
    torch.testing.assert_close(some, every[:, [4, 1, len(WORDS)]])
    with pytest.raises(ValueError, match="knows 6 classes.*not \\['zebra'\\]"):
        head(embeds, [("zebra",)])
    assert ClosedSegHead(8, "VOCSegDataset").classes[-1] == "tv monitor"
    # in any case, and by a synonym
    named = head(embeds, [("rot", WORDS[4].upper()), (WORDS[1],)])
    torch.testing.assert_close(named, some)


def test_what_does_not_go_together_is_refused(
    build: Callable[..., SegStudent],
) -> None:
    with pytest.raises(ValueError, match="set both to the same"):
        build(**{"proj.embed_dims": 16})
    with pytest.raises(ValueError, match="32 dimensions"):
        build(**{"proj.embed_dims": 16, "seg_head.embed_dims": 16})
    with pytest.raises(ValueError, match="ClosedSegHead"):
        build(**{"clip_proj": EMBED_DIMS})
    with pytest.raises(ValueError, match="two levels or more"):
        build(**{"proj.in_channels": [32]})
    # the teacher's embeddings may have other dimensions where no word is compared
    closed = build("voc")
    assert closed.clip_proj.out_features == closed.proj.embed_dims != EMBED_DIMS
    assert build("voc", teacher=None, distill=None).clip_proj is None
    for cfg in (
        dict(window=100),
        dict(window=64, stride=96),
        dict(window=96, stride=7),
    ):
        with pytest.raises(ValueError, match="multiples of 32"):
            build(test_cfg=cfg)


def test_a_name_of_a_data_set_imports_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a file ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil.thing", "mmdet.CocoDataset", "CocoDataset"):
        with pytest.raises(ValueError, match="no data set of masks"):
            ClosedSegHead(8, name)


def test_the_projected_teacher_learns_and_keeps_its_precision(
    build: Callable[..., SegStudent],
) -> None:
    """With every loss, in half precision, with captions."""
    model = build("voc").train()
    teacher = ProjectedTeacher(FixedTeacher(unit(4, EMBED_DIMS)), model.clip_proj)
    for distance in (ContrastiveDistance(same=2.0), RelationalDistance()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            targets = teacher.images()
            assert targets.dtype == torch.float32
            loss = distance(torch.randn(4, 16, requires_grad=True), targets).sum()
        loss.backward()
    assert model.clip_proj.weight.grad.any()
    assert teacher.captions(["a"] * 4).shape == (4, 16)


# ----------------------------------------------------------------------- regions


def test_connected_pixels_are_a_region() -> None:
    background = torch.ones(1, 4, 6)
    background[0, 0:2, 0:3] = 0.2
    background[0, 3, 4:6] = 0.4
    embeds = torch.randn(1, 5, 4, 6, requires_grad=True)
    regions = pixel_regions(embeds, background, 8)
    assert regions.embeds is not None and regions.embeds.requires_grad
    boxes = regions.boxes[0].view(4, 6, 4)
    assert boxes[0, 0].tolist() == boxes[1, 2].tolist() == [0, 0, 24, 16]
    assert boxes[3, 5].tolist() == [32, 24, 48, 32]
    assert not boxes[2].any()
    # one pixel of each stands for it
    sharp = regions.sharpness[0].view(4, 6)
    assert (sharp > 0).sum() == 2 and (sharp[:2, :3] > 0).any() and sharp[3, 4:].any()
    torch.testing.assert_close(sharp[sharp > 0].sort().values, torch.tensor([0.6, 0.8]))
    assert regions.centres[7].tolist() == [12, 12]
    # without a background nothing is apart
    assert not pixel_regions(embeds, None, 8).sharpness.any()


def test_of_a_large_object_pixels_all_over_it_are_taught(
    build: Callable[..., SegStudent],
) -> None:
    """Not its first rows, which have the same box."""
    background = torch.ones(1, 40, 40)
    background[0, 5:35, 5:35] = 0.1
    embeds = F.normalize(torch.randn(1, EMBED_DIMS, 40, 40), dim=1)
    regions = pixel_regions(embeds, background, 4)
    box = torch.tensor([[20.0, 20, 140, 140]])
    where, _, weight = match(build().distill["region"], box, regions)
    assert len(where) == POINTS
    rows, columns = where // 40, where % 40
    for places in (rows, columns):
        assert places.min() < 9 and places.max() > 31 and len(places.unique()) > 20
    assert weight.sum().item() == pytest.approx(1)
    assert regions.sharpness.nonzero()[0, 1] in where


def test_regions_that_are_always_empty_are_refused(
    build: Callable[..., SegStudent],
) -> None:
    sources = {"distill.region.sources": ("truth", "own")}
    with pytest.raises(ValueError, match=r"no \['truth'\] regions"):
        build(**sources)
    with pytest.raises(ValueError, match=r"no \['own'\] regions"):
        build(**{"seg_head.background": False})


# ----------------------------------------------------------------------- answers


def test_a_long_vocabulary_is_labelled_as_if_at_once(monkeypatch: Any) -> None:
    logits = torch.randn(37, 6, 8) * 3
    full = FullSize((48, 64), (40, 60), (20, 30))
    monkeypatch.setattr(label_maps, "CHUNK", 20 * 30 * 4)
    found = label_pixels(logits, full, len(logits) - 1)
    shares = full(logits).softmax(0)
    best, label = shares.max(0)
    label[label == len(logits) - 1] = BACKGROUND
    assert found.sem_seg[0].equal(label)
    torch.testing.assert_close(found.confidence[0], best)


def test_an_image_does_not_depend_on_its_neighbours(
    build: Callable[..., SegStudent],
) -> None:
    student = KDEOV(build("shapes_none"))
    rng = np.random.default_rng(0)
    sizes = ((50, 70), (160, 90), (33, 200))
    images = [rng.integers(256, size=(*s, 3), dtype=np.uint8) for s in sizes]
    together = student.segment(images, WORDS, scores=True)
    for image, one in zip(images, together):
        (alone,) = student.segment(image, WORDS, scores=True)
        assert one["labels"].shape == image.shape[:2]
        assert one["labels"].equal(alone["labels"])
        torch.testing.assert_close(one["scores"], alone["scores"])
        # shares of words and background
        assert one["scores"].shape == (len(WORDS), *image.shape[:2])
        assert (one["scores"].sum(0) <= 1 + 1e-5).all()
        known = one["labels"] >= 0
        best = one["scores"].max(0).values
        torch.testing.assert_close(one["confidence"][known], best[known])


def test_words_below_the_threshold_are_none(build: Callable[..., SegStudent]) -> None:
    student = KDEOV(build("shapes_none"))
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    (every,) = student.segment(image, WORDS)
    least = every["confidence"].median().item()
    (some,) = student.segment(image, WORDS, least)
    assert (some["labels"][every["confidence"] < least] == BACKGROUND).all()
    assert set(some["names"]) <= set(every["names"])
    with pytest.raises(ValueError, match="threshold"):
        student.segment(image, WORDS, 1.5)
    with pytest.raises(ValueError, match="list of words"):
        student.segment(image, "red ball")


def test_windows_are_the_mean_of_what_each_sees(
    build: Callable[..., SegStudent],
) -> None:
    model = build("shapes_none").eval()
    images = torch.rand(1, 3, 64, 160)
    with torch.no_grad():
        whole = model.embed_windows(images, {})
        torch.testing.assert_close(whole, model.embed_pixels(images))
        # three windows of 64 px, 48 apart, of which the last ends with the image
        found = model.embed_windows(images, dict(window=64, stride=48))
        total, seen = torch.zeros_like(found), torch.zeros_like(found)
        for left in (0, 48, 96):
            part = slice(left // 4, left // 4 + 16)
            total[..., part] += model.embed_pixels(images[..., left : left + 64])
            seen[..., part] += 1
    torch.testing.assert_close(found, total / seen)
    # and the interface cuts large images
    student = KDEOV(model)
    image = np.random.default_rng(0).integers(256, size=(100, 210, 3), dtype=np.uint8)
    (cut,) = student.segment(image, WORDS, size=320, window=96)
    assert cut["labels"].shape == (100, 210)


def test_a_detector_gives_no_masks(lively: Any, load_config: Any) -> None:
    lively.cfg = load_config("kdeov_n_shapes.py")
    with pytest.raises(ValueError, match="gives no masks"):
        KDEOV(lively).segment(np.zeros((32, 32, 3), np.uint8), WORDS)
    with pytest.raises(ValueError, match="finds no boxes"):
        cfg = load_config("../seg/seg_shapes_none.py")
        model = MODELS.build(cfg.model)
        model.cfg = cfg
        KDEOV(model).open_vocabulary_detect(np.zeros((32, 32, 3), np.uint8), WORDS)


def test_photos_have_the_size_of_the_tests(build: Callable[..., SegStudent]) -> None:
    """Of (2048, 512) the shorter side decides; the input is not 2048 pixels wide."""
    student, sizes = KDEOV(build("voc")), []
    predict = student.model.predict

    def look(inputs: Tensor, *args: Any) -> Any:
        sizes.append(tuple(inputs.shape[-2:]))
        return predict(inputs, *args)

    student.model.predict = look
    image = np.zeros((375, 500, 3), np.uint8)
    student.segment(image, ["cat", "dog"])
    student.segment(image, ["cat", "dog"], size=256)
    assert sizes == [(512, 704), (192, 256)]
    with pytest.raises(ValueError, match="size is at least 1"):
        student.segment(image, ["cat"], size=-4)


@pytest.mark.parametrize("words", [None, WORDS[:3]])
def test_an_onnx_file_says_the_same(
    words: Any, build: Callable[..., SegStudent], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    from kdeov_mm.inference.export import read_metadata, session_of
    from kdeov_mm.inference.export_masks import export_masks

    model, file = build("shapes_none").eval(), tmp_path / "masks.onnx"
    assert export_masks(model, file, words) < 1e-3
    session = session_of(str(file))
    about = read_metadata(session)
    assert about["form"] == ("vocabulary" if words is None else "folded")
    feed = dict(images=np.zeros((2, 3, 32, 64), np.float32))
    if words is None:
        feed["text"] = unit(4, EMBED_DIMS).numpy()
    (shares,) = session.run(None, feed)
    assert shares.shape == (2, 5 if words is None else 4, 32, 64)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
