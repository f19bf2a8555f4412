"""Retrieval recall and zero-shot accuracy are those of the definition."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdeov_mm.evaluation import (
    RetrievalMetric,
    ZeroShotMetric,
    retrieval_recall,
    zero_shot_accuracy,
)
from kdeov_mm.evaluation.image_text import retrieval_ranks

BLOCKS = [(1, 1), (3, 5), (7, 2), (10**6, 10**6)]
Gallery = tuple[Tensor, Tensor, Tensor]
TINY_IMAGES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
TINY_CAPTIONS = torch.tensor(
    [
        [0.6, 0.8],  # of the first image, though nearer to the second
        [1.0, 0.0],
        [0.8, 0.6],  # of the second, though nearer to the first
        [0.28, 0.96],
        [0.6, 0.8],
    ]
)
TINY_OWNER = torch.tensor([0, 0, 1, 1, 0])


def make_gallery(seed: int, images: int = 13, ties: bool = False) -> Gallery:
    """One to seven captions per image, in no order; near their image, but not very.

    With `ties` all scores are multiples of an eighth, and exact in any precision.
    """
    rng = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 8, (images,), generator=rng)
    counts[:2] = torch.tensor([1, 7])
    owner = torch.arange(images).repeat_interleave(counts)
    owner = owner[torch.randperm(len(owner), generator=rng)]
    pictures = torch.randn(images, 16, generator=rng)
    captions = pictures[owner] + 1.5 * torch.randn(len(owner), 16, generator=rng)
    if ties:
        pictures, captions = pictures.sign(), captions.sign()
    return pictures, captions, owner


def slow_ranks(gallery: Gallery) -> tuple[list[int], list[int]]:
    """The wrong answers before the right one, counted one by one."""
    images, captions = (F.normalize(part.double(), dim=1) for part in gallery[:2])
    score, owner = (images @ captions.T).tolist(), gallery[2].tolist()
    of_images = []
    for i in range(len(images)):
        best = max(score[i][j] for j, o in enumerate(owner) if o == i)
        wrong = [j for j, o in enumerate(owner) if o != i]
        of_images.append(sum(score[i][j] >= best for j in wrong))
    of_captions = []
    for j, own in enumerate(owner):
        wrong = [i for i in range(len(images)) if i != own]
        of_captions.append(sum(score[i][j] >= score[own][j] for i in wrong))
    return of_images, of_captions


def slow_recall(gallery: Gallery, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    figures: dict[str, float] = {}
    for way, ranks in zip(("i2t", "t2i"), slow_ranks(gallery)):
        for k in ks:
            figures[f"{way}_R@{k}"] = sum(rank < k for rank in ranks) / len(ranks)
        figures[f"{way}_median_rank"] = statistics.median_low(ranks) + 1
    return dict(figures, images=len(gallery[0]), captions=len(gallery[1]))


def recalls(figures: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if "_R@" in key}


# ------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_recall_is_that_of_the_definition_whatever_the_blocks(
    seed: int, ties: bool
) -> None:
    gallery = make_gallery(seed, ties=ties)
    slow = slow_recall(gallery, (1, 2, 5, 10))
    assert 0 < slow["i2t_R@1"] < 1 and 0 < slow["t2i_R@1"] < 1
    before = [part.clone() for part in gallery]
    for block in BLOCKS:
        assert retrieval_recall(*gallery, (1, 2, 5, 10), block) == pytest.approx(slow)
    assert retrieval_recall(*gallery, (1, 2, 5, 10)) == pytest.approx(slow)
    assert all(torch.equal(a, b) for a, b in zip(before, gallery))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("ties", [False, True])
def test_each_rank_is_that_of_the_definition(
    block: tuple[int, int], ties: bool
) -> None:
    images, captions, owner = make_gallery(7, ties=ties)
    unit = F.normalize(images, dim=1), F.normalize(captions, dim=1)
    ranks = retrieval_ranks(*unit, owner, block)
    assert tuple(r.tolist() for r in ranks) == slow_ranks((images, captions, owner))


def test_an_image_is_found_by_any_of_its_captions() -> None:
    figures = retrieval_recall(TINY_IMAGES, TINY_CAPTIONS, TINY_OWNER, (1, 2))
    assert figures == pytest.approx(
        {
            "i2t_R@1": 1,  # by the second caption of each
            "i2t_R@2": 1,
            "i2t_median_rank": 1,
            "t2i_R@1": 2 / 5,  # each caption by itself
            "t2i_R@2": 1,
            "t2i_median_rank": 2,
            "images": 2,
            "captions": 5,
        }
    )
    firsts = [0, 2]  # "the i-th caption is the i-th image's" knows no others
    diagonal = retrieval_recall(TINY_IMAGES, TINY_CAPTIONS[firsts], torch.arange(2))
    assert diagonal["i2t_R@1"] == 0


def test_a_caption_of_five_is_enough() -> None:
    """Four are as wrong as can be, for every image."""
    images = torch.eye(8)
    wrong = -images.repeat_interleave(4, 0)
    captions = torch.cat([wrong, images])
    owner = torch.cat([torch.arange(8).repeat_interleave(4), torch.arange(8)])
    figures = retrieval_recall(images, captions, owner, (1,))
    assert figures["i2t_R@1"] == 1
    assert figures["t2i_R@1"] == pytest.approx(1 / 5)


def test_own_captions_are_no_wrong_answers_to_each_other() -> None:
    captions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    owner = torch.tensor([0, 0, 0, 1])
    assert retrieval_recall(torch.eye(2), captions, owner, (1,))["i2t_R@1"] == 1


def test_equal_embeddings_are_found_last() -> None:
    images, captions = torch.ones(6, 4), torch.ones(18, 4)
    owner = torch.arange(6).repeat_interleave(3)
    figures = retrieval_recall(images, captions, owner, (1, 5, 6, 15, 16))
    assert [figures[f"i2t_R@{k}"] for k in (1, 5, 6, 15, 16)] == [0, 0, 0, 0, 1]
    assert [figures[f"t2i_R@{k}"] for k in (1, 5, 6)] == [0, 0, 1]
    assert (figures["i2t_median_rank"], figures["t2i_median_rank"]) == (16, 6)


@pytest.mark.parametrize("block", BLOCKS)
def test_equal_embeddings_are_found_last_in_spite_of_rounding(
    block: tuple[int, int],
) -> None:
    """Of a length whose products are rounded, and differently by their order."""
    vector = torch.randn(1, 511)
    images, captions = vector.repeat(6, 1), 3.3 * vector.repeat(12, 1)
    owner = torch.arange(6).repeat(2)
    figures = retrieval_recall(images, captions, owner, (1, 5), block)
    assert set(recalls(figures).values()) == {0}


def test_perfect_embeddings_are_found_first() -> None:
    images, _, owner = make_gallery(0)
    figures = retrieval_recall(images, images[owner], owner)
    assert set(recalls(figures).values()) == {1}
    assert figures["i2t_median_rank"] == figures["t2i_median_rank"] == 1


def test_recall_grows_with_k_to_one() -> None:
    gallery = make_gallery(3)
    ks = range(1, len(gallery[1]) + 1)
    figures = retrieval_recall(*gallery, ks)
    for way in ("i2t", "t2i"):
        curve = [figures[f"{way}_R@{k}"] for k in ks]
        assert curve == sorted(curve) and curve[0] < curve[-1] == 1


def test_the_order_of_images_and_captions_does_not_matter() -> None:
    images, captions, owner = make_gallery(1)
    figures = retrieval_recall(images, captions, owner)
    moved = torch.randperm(len(captions))
    assert retrieval_recall(images, captions[moved], owner[moved]) == figures
    moved = torch.randperm(len(images))
    place = torch.empty_like(moved)
    place[moved] = torch.arange(len(moved))
    assert retrieval_recall(images[moved], captions, place[owner]) == figures


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_length_of_vectors_does_not_matter(scale: float) -> None:
    images, captions, owner = make_gallery(2)
    figures = retrieval_recall(images, captions, owner)
    longer = scale * (0.1 + torch.rand(len(images), 1))
    other = scale * (0.1 + torch.rand(len(captions), 1))
    assert retrieval_recall(longer * images, other * captions, owner) == figures


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_any_precision_are_compared_in_float32(dtype: torch.dtype) -> None:
    images, captions, owner = make_gallery(4)
    images, captions = images.to(dtype), captions.to(dtype)
    figures = retrieval_recall(images.float(), captions.float(), owner)
    assert retrieval_recall(images, captions, owner) == figures


@pytest.mark.parametrize("seed", range(3))
def test_no_rank_improves_in_a_larger_gallery(seed: int) -> None:
    images, captions, owner = make_gallery(seed)
    more_images, more_captions, more_owner = make_gallery(seed + 100)
    small = slow_ranks((images, captions, owner))
    parts = [(images, more_images), (captions, more_captions)]
    unit = [F.normalize(torch.cat(part), dim=1) for part in parts]
    owners = torch.cat([owner, more_owner + len(images)])
    large = retrieval_ranks(unit[0], unit[1], owners, (5, 9))
    for before, after in zip(small, large):
        grown = after[: len(before)] - torch.tensor(before)
        assert (grown >= 0).all() and (grown > 0).any()


@pytest.mark.parametrize("seed", range(3))
def test_recall_falls_when_distractors_come(seed: int) -> None:
    """Pictures whose own captions say the contrary: they are never found."""
    images, captions, owner = make_gallery(seed)
    gallery = images, captions, owner
    last = retrieval_recall(*gallery)
    for _ in range(3):
        strange = torch.randn(6, 16)
        gallery = (
            torch.cat([gallery[0], strange]),
            torch.cat([gallery[1], -strange]),
            torch.cat([gallery[2], torch.arange(6) + len(gallery[0])]),
        )
        figures = retrieval_recall(*gallery)
        for key, value in recalls(figures).items():
            assert value < last[key], key
        last = figures


def test_with_a_twin_of_everything_nothing_is_first() -> None:
    images, captions, owner = make_gallery(0)
    twins = retrieval_recall(
        images.repeat(2, 1),
        captions.repeat(2, 1),
        torch.cat([owner, owner + len(images)]),
    )
    assert twins["i2t_R@1"] == twins["t2i_R@1"] == 0


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(images=torch.rand(2, 3)), r"got \(2, 3\) and \(5, 2\)"),
        (dict(captions=torch.rand(5)), r"got \(2, 2\) and \(5,\)"),
        (dict(owner=torch.tensor([0, 0, 1, 1])), r"each of 5 captions.*got \(4,\)"),
        (dict(owner=torch.zeros(5, 1).long()), r"got \(5, 1\)"),
        (dict(owner=torch.tensor([0, 0, 1, 2, 0])), r"in \[0, 2\], images in \[0, 2\)"),
        (dict(owner=torch.tensor([0, 0, 1, -1, 0])), r"lie in \[-1, 1\]"),
        (dict(owner=torch.zeros(5).long()), "and 1 images have no caption"),
        (dict(images=torch.zeros(0, 2)), r"images in \[0, 0\)"),
        (
            dict(captions=torch.zeros(0, 2), owner=torch.zeros(0).long()),
            "0 captions, at least one",
        ),
        (
            dict(
                images=torch.zeros(0, 2),
                captions=torch.zeros(0, 2),
                owner=torch.zeros(0).long(),
            ),
            "at least one",
        ),
        (
            dict(images=torch.tensor([[1.0, 0.0], [0.0, 0.0]])),
            r"1 image embeddings have no direction.*number 1",
        ),
        (
            dict(images=torch.tensor([[1.0, torch.nan], [0.0, 1.0]])),
            r"1 image embeddings.*number 0",
        ),
        (
            dict(captions=TINY_CAPTIONS.index_fill(0, torch.tensor([2, 4]), torch.inf)),
            r"2 caption embeddings.*number 2",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    change: dict[str, Tensor], reason: str
) -> None:
    gallery = dict(images=TINY_IMAGES, captions=TINY_CAPTIONS, owner=TINY_OWNER)
    with pytest.raises(ValueError, match=reason):
        retrieval_recall(**{**gallery, **change})


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        sizes = [part.numel() for part in made if isinstance(part, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def test_all_similarities_are_never_in_memory_at_once() -> None:
    number, each, dims = 2000, 5, 64
    images = torch.randn(number, dims)
    owner = torch.arange(number).repeat_interleave(each)
    captions = images[owner] + 2 * torch.randn(len(owner), dims)
    with Largest() as largest:
        retrieval_recall(images, captions, owner, block=(512, 1000))
    assert 512 * 1000 <= largest.elements <= captions.numel()  # not number * captions


# ------------------------------------------------------------------- zero-shot


def test_accuracy_of_each_class_is_counted_by_hand() -> None:
    ranking = torch.tensor(
        [
            [0, 1, 2, 3, 4, 5],  # first
            [1, 2, 0, 3, 4, 5],  # third
            [5, 4, 3, 2, 1, 0],  # sixth
            [0, 1, 2, 3, 4, 5],  # second
            [5, 4, 3, 2, 1, 0],  # fifth
            [3, 0, 1, 2, 4, 5],  # first
        ]
    )
    rates = zero_shot_accuracy(ranking, torch.tensor([0, 0, 0, 1, 1, 3]), 6, (1, 3, 5))
    none = torch.nan
    wanted = {
        1: [1 / 3, 0, none, 1, none, none],
        3: [2 / 3, 1 / 2, none, 1, none, none],
        5: [2 / 3, 1, none, 1, none, none],
    }
    assert rates.keys() == wanted.keys()
    for k, rate in wanted.items():
        assert rates[k].tolist() == pytest.approx(rate, nan_ok=True)


def test_more_guesses_find_no_less() -> None:
    ranking = torch.rand(300, 9).argsort(1)
    labels = torch.randint(0, 9, (300,))
    rates = zero_shot_accuracy(ranking, labels, 9, range(1, 10))
    for k in range(1, 9):
        assert (rates[k + 1] >= rates[k]).all()
    assert (rates[9] == 1).all() and (rates[1] < 1).all()


def test_of_fewer_words_than_guesses_one_is_right() -> None:
    ranking = torch.rand(20, 3).argsort(1)
    rates = zero_shot_accuracy(ranking, torch.arange(20) % 3, 3)
    assert rates[5].tolist() == [1, 1, 1]


def test_images_may_all_be_of_one_class() -> None:
    """Of the first one, or of the last."""
    ranking = torch.tensor([[0, 2, 1], [2, 0, 1]])
    for label, wanted in ((0, [0.5, math.nan, math.nan]), (2, [math.nan] * 2 + [0.5])):
        rates = zero_shot_accuracy(ranking, torch.tensor([label] * 2), 3, (1,))
        assert rates[1].tolist() == pytest.approx(wanted, nan_ok=True)


def test_without_images_no_class_has_an_accuracy() -> None:
    rates = zero_shot_accuracy(torch.zeros(0, 5).long(), torch.zeros(0).long(), 7)
    assert rates[1].shape == (7,) and rates[1].isnan().all()


@pytest.mark.parametrize(
    "ranking, labels, reason",
    [
        ((2, 5), [0, 7], r"labels lie in \[0, 7\], but there are 7 classes"),
        ((2, 5), [-1, 0], r"labels lie in \[-1, 0\]"),
        ((2, 4), [0, 1], r"the best 5 classes of each of 2 images, got \(2, 4\)"),
        ((3, 5), [0, 1], r"each of 2 images, got \(3, 5\)"),
        ((10,), [0, 1], r"got \(10,\)"),
    ],
)
def test_rankings_and_labels_that_do_not_agree_are_refused(
    ranking: tuple[int, ...], labels: list[int], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        zero_shot_accuracy(torch.zeros(ranking).long(), torch.tensor(labels), 7)


# --------------------------------------------------------------------- metrics


def predicted(img_id: Any, meta: dict[str, Any], **data: Tensor) -> DetDataSample:
    """A sample as the model returns it."""
    sample = DetDataSample(metainfo=dict(img_id=img_id, **meta))
    sample.set_data(data)
    return sample


def retrieval_samples(gallery: Gallery) -> list[DetDataSample]:
    images, captions, owner = gallery
    return [
        predicted(
            100 - i,
            dict(captions=("a sentence",) * int((owner == i).sum())),
            visual_feature=image,
            caption_features=captions[owner == i],
        )
        for i, image in enumerate(images)
    ]


def evaluated(
    metric: RetrievalMetric | ZeroShotMetric,
    samples: list[DetDataSample],
    meta: dict[str, Any] | None = None,
) -> dict[str, float]:
    """As a runner does it, in two batches."""
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = meta or {}
    half = len(samples) // 2
    for batch in (samples[:half], samples[half:]):
        evaluator.process(batch)
    return evaluator.evaluate(len(samples))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the metrics log."""
    lines: list[str] = []

    class Logger:
        def info(self, message: str) -> None:
            lines.append(message)

    monkeypatch.setattr(
        "kdeov_mm.evaluation.protocol_metric.MMLogger.get_current_instance",
        lambda: Logger(),
    )
    return lines


def test_a_run_has_the_figures_of_its_embeddings() -> None:
    gallery = make_gallery(0)
    figures = evaluated(
        RetrievalMetric("a test", ks=(1, 3)), retrieval_samples(gallery)
    )
    expected = retrieval_recall(*gallery, (1, 3))
    assert figures == {f"retrieval/{key}": value for key, value in expected.items()}


def test_an_image_that_comes_twice_is_once_in_the_gallery() -> None:
    samples = retrieval_samples(make_gallery(0))
    once = evaluated(RetrievalMetric("a test"), samples)
    assert once["retrieval/i2t_R@1"] > 0  # its twin's captions would be as near
    assert evaluated(RetrievalMetric("a test"), [*samples, *samples[:5]]) == once


def test_the_gallery_stands_beside_its_figures(
    tmp_path: Path, logged: list[str]
) -> None:
    gallery, file = make_gallery(0), tmp_path / "new/folder/figures.json"
    sizes = dict(images=len(gallery[0]), captions=len(gallery[1]))
    metric = RetrievalMetric("noise, five words", out_file=str(file))
    figures = evaluated(metric, retrieval_samples(gallery))
    (text,) = logged
    size = f"{sizes['images']} images, {sizes['captions']} captions"
    assert f"Protocol: noise, five words (gallery: {size})" in text
    assert "i2t_R@1 " in text and "t2i_median_rank" in text
    content = json.loads(file.read_text())
    assert content["protocol"] == "noise, five words"
    assert content["gallery"] == sizes
    assert {f"retrieval/{k}": v for k, v in content["metrics"].items()} == {
        key: value for key, value in figures.items() if key[10:] not in sizes
    }


def test_an_image_without_captions_is_refused_by_name() -> None:
    sample = predicted("i7", {}, visual_feature=torch.ones(4))
    with pytest.raises(ValueError, match="image i7 has no embeddings.*meta_keys"):
        RetrievalMetric("a test").process({}, [sample.to_dict()])


NAMES = tuple(f"thing {i}" for i in range(8))
META = dict(
    classes=NAMES,
    base_classes=NAMES[:5],
    novel_classes=NAMES[5:],
    rare_classes=("thing 7", "a class that is not asked"),
)


def zero_shot_samples(number: int = 60) -> tuple[list[DetDataSample], Tensor, Tensor]:
    """Samples, their rankings and labels; no image is of class 4, few are of 5."""
    rng = np.random.default_rng(0)
    odds = np.array([5, 4, 3, 3, 0, 1, 2, 2]) / 20
    labels = torch.from_numpy(rng.choice(8, number, p=odds))
    scores = torch.rand(number, 8) + 0.5 * F.one_hot(labels, 8)
    ranking = scores.argsort(1, descending=True)
    samples = [
        predicted(f"n{i}.jpg", dict(gt_label=int(label)), ranking=best)
        for i, (label, best) in enumerate(zip(labels, ranking))
    ]
    return samples, ranking, labels


def share(ranking: Tensor, labels: Tensor, k: int) -> float:
    return sum(
        label in best[:k] for best, label in zip(ranking.tolist(), labels.tolist())
    ) / len(labels)


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy_of_a_group_is_that_of_its_images(k: int) -> None:
    samples, ranking, labels = zero_shot_samples()
    figures = evaluated(ZeroShotMetric("a test"), samples, META)
    groups = {"": range(8), "base_": range(5), "novel_": range(5, 8)}
    for lead, members in groups.items():
        mine = torch.isin(labels, torch.tensor([*members]))
        wanted = share(ranking[mine], labels[mine], k)
        assert figures[f"zero_shot/{lead}top{k}"] == pytest.approx(wanted)
        rates = [
            share(ranking[labels == c], labels[labels == c], k)
            for c in members
            if (labels == c).any()
        ]
        wanted = sum(rates) / len(rates)
        assert figures[f"zero_shot/{lead}mean_top{k}"] == pytest.approx(wanted)
    assert 0 < figures["zero_shot/top1"] < figures["zero_shot/top5"] < 1
    kinds = ("top1", "top5", "mean_top1", "mean_top5")
    assert {*figures} == {
        f"zero_shot/{lead}{kind}" for lead in groups for kind in kinds
    }


def test_a_group_without_an_image_has_no_figure() -> None:
    samples, _, labels = zero_shot_samples()
    seen = [s for s, label in zip(samples, labels) if label < 5]
    figures = evaluated(ZeroShotMetric("a test"), seen, META)
    assert not [key for key in figures if "novel" in key]
    assert figures["zero_shot/base_top1"] == figures["zero_shot/top1"]


def test_a_picture_that_comes_twice_counts_once() -> None:
    samples, _, _ = zero_shot_samples()
    once = evaluated(ZeroShotMetric("a test"), samples, META)
    twice = evaluated(ZeroShotMetric("a test"), [*samples, *samples[:9]], META)
    assert twice == once


@pytest.mark.parametrize("per_class", [True, False])
def test_the_words_stand_beside_their_figures(
    tmp_path: Path, logged: list[str], per_class: bool
) -> None:
    samples, ranking, labels = zero_shot_samples()
    file = tmp_path / "new/figures.json"
    metric = ZeroShotMetric("noise", per_class=per_class, out_file=str(file))
    figures = evaluated(metric, samples, META)
    (text,) = logged
    assert "Protocol: noise (60 images, 8 words)" in text and "novel_top1" in text
    content = json.loads(file.read_text())
    assert (content["protocol"], content["images"], content["words"]) == (
        "noise",
        60,
        8,
    )
    written = {f"zero_shot/{k}": v for k, v in content["metrics"].items()}
    assert written == figures
    assert ("classes" in content) is per_class
    if per_class:
        assert {*content["classes"]} == {*NAMES} - {"thing 4"}
        for name, row in content["classes"].items():
            mine = labels == NAMES.index(name)
            assert row["images"] == mine.sum()
            for k in (1, 5):
                wanted = share(ranking[mine], labels[mine], k)
                assert row[f"top{k}"] == pytest.approx(wanted)


@pytest.mark.parametrize("missing", ["gt_label", "ranking"])
def test_a_picture_without_label_or_words_is_refused_by_name(missing: str) -> None:
    sample = zero_shot_samples(1)[0][0].to_dict()
    del sample[missing]
    with pytest.raises(ValueError, match="image n0.jpg has no label, or.*'gt_label'"):
        ZeroShotMetric("a test").process({}, [sample])
