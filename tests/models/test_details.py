"""Details that a wrong line would change without an error: each by its value."""

from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm.clip import CLIPImageTeacher
from kdeov_mm.clip.teacher import _resized, undo_normalisation
from kdeov_mm.models import (
    CandidateLocations,
    CosineDistance,
    Distillation,
    RandomVocabulary,
)
from kdeov_mm.models.distill.base import Needs, RegionEmbeds
from kdeov_mm.models.distill.regions import RegionPicker, _random_squares
from kdeov_mm.models.label_maps import check_windows
from kdeov_mm.models.postprocess import _parts
from kdeov_mm.models.seg_heads import PixelProjection
from kdeov_mm.models.text_classifier import (
    TextClassifier,
    initial_logit_scale,
)

from ..conftest import EMBED_DIMS, make_sample

PROJECTION = dict(
    type="GlobalProjection",
    in_channels=[256, 512, 1024],
    embed_dims=EMBED_DIMS,
    widen_factor=0.25,
)
HEAD: dict[str, Any] = dict(
    type="GlobalHead",
    projection=PROJECTION,
    distances=dict(cosine=dict(type="CosineDistance")),
    sources=("truth",),
    target="regions",
)
BOXES = ((8.0, 8, 40, 40), (20.0, 4, 60, 30))


def batch(model: Any, number: int = 2) -> dict[str, Any]:
    torch.manual_seed(1)
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(number)]
    samples = [make_sample(BOXES, (1, 2)) for _ in images]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), True)


# ----------------------------------------------------------------- the teacher


def test_images_shrink_with_a_filter() -> None:
    """Noise is grey from afar; without a filter some of its pixels are picked."""
    noise = torch.rand(1, 3, 256, 256)
    small = _resized(noise, (32, 32))
    assert small.mean().item() == pytest.approx(0.5, abs=0.01)
    assert small.std() < noise.std() / 4


def test_what_lies_beyond_an_image_is_black(tiny_clip: str) -> None:
    teacher = CLIPImageTeacher(tiny_clip)
    image = torch.rand(1, 3, 64, 64)
    over = torch.tensor([[32.0, 32, 96, 96]])  # half of each side lies beyond
    framed = F.pad(image, (0, 64, 0, 64))
    (said,), (black,), (white,) = (
        teacher.embed_crops(pixels, [over], scales=(1.0,))
        for pixels in (image, framed, F.pad(image, (0, 64, 0, 64), value=1.0))
    )
    torch.testing.assert_close(said, black, atol=1e-6, rtol=0)
    assert said @ white < 1 - 1e-3


def test_padding_is_black_to_the_teacher(build_detector: Callable[..., Any]) -> None:
    preprocessor = build_detector(
        **{"data_preprocessor.mean": [100.0] * 3, "data_preprocessor.std": [50.0] * 3}
    ).data_preprocessor
    inputs = torch.randn(2, 3, 64, 64)
    pixels = undo_normalisation(preprocessor, inputs, [(64, 40), (30, 64)])
    assert not pixels[0, ..., 40:].any() and not pixels[1, :, 30:].any()
    wanted = (inputs[0, ..., :40] * 50 + 100) / 255
    torch.testing.assert_close(pixels[0, ..., :40], wanted)


# ------------------------------------------------------------------- the crops


def test_crops_leave_the_statistics_of_the_norms_alone(
    build_detector: Callable[..., Any],
) -> None:
    statistics = []
    for crops in (0.0, 2.0):
        model = build_detector(global_head=dict(HEAD, crops=crops)).train()
        model.loss(**batch_of(model))
        statistics.append(
            {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        )
    without, with_crops = statistics
    assert without and all(torch.equal(with_crops[k], without[k]) for k in without)


def batch_of(model: Any) -> dict[str, Any]:
    data = batch(model)
    return dict(batch_inputs=data["inputs"], batch_data_samples=data["data_samples"])


@pytest.mark.parametrize(("crops", "sizes"), [(1.0, (32, 64)), (0.5, (32,))])
def test_there_are_as_many_crops_as_their_pixels_allow(
    crops: float, sizes: tuple[int, ...], build_detector: Callable[..., Any]
) -> None:
    head = dict(HEAD, crops=crops, crop_sizes=sizes)
    model = build_detector(global_head=head).train()
    cut, made = model._crop_features, {}

    def count(images: Tensor, boxes: Sequence[Tensor], side: int) -> Any:
        made[side] = sum(map(len, boxes))
        return cut(images, boxes, side)

    model._crop_features = count
    model.loss(**batch_of(model))
    # two images of 64 x 64 pixels, four regions at most
    budget = crops * 2 * 64 * 64 / len(sizes)
    assert made == {side: min(round(budget / side**2), 4) for side in sizes}


# ------------------------------------------------------------------ own boxes


def test_a_box_is_sharp_where_its_sides_are_sure(
    build_detector: Callable[..., Any],
) -> None:
    head = build_detector(teacher=None, distill=None).train().bbox_head
    feats = [torch.randn(1, c, s, s) for c, s in ((64, 8), (128, 4), (256, 2))]
    located = head.embed(feats)
    # the mean over the sides of the largest probability of each
    logits = torch.cat([*head.head_module.trunk(feats)[-1]], 1)  # (B, N, 4, bins)
    wanted = logits.softmax(-1).amax(-1).mean(-1)
    torch.testing.assert_close(located.regions.sharpness, wanted)


def test_own_boxes_are_larger_than_four_pixels_and_cut_at_the_border() -> None:
    boxes = [[0.0, 0, 4, 60], [10, 10, 14.1, 40], [-9, 50, 30, 99], [40, 0, 60, 4]]
    regions = RegionEmbeds(
        None, torch.tensor([boxes]), torch.tensor([[0.9, 0.8, 0.7, 0.6]]), None, None
    )
    (found,) = RegionPicker().own_boxes([make_sample(shape=(64, 56))], regions)
    torch.testing.assert_close(
        found, torch.tensor([[10.0, 10, 14.1, 40], [0, 50, 30, 64]])
    )


@pytest.mark.parametrize("most, count", [(None, 2), (0.2, 1)])
def test_own_boxes_that_overlap_a_label_are_left_out(
    most: float | None, count: int
) -> None:
    """A quarter of the first box's union with the label is common to both."""
    label = [0.0, 0, 40, 20]
    boxes = [[20.0, 0, 50, 20], [0, 30, 40, 60], [1, 0, 40, 20]]
    regions = RegionEmbeds(
        None, torch.tensor([boxes]), torch.tensor([[0.9, 0.8, 0.7]]), None, None
    )
    picker, sample = RegionPicker(label_iou=most), make_sample([label], [0])
    (found,) = picker.own_boxes([sample], regions)
    assert found.tolist() == boxes[2 - count : 2]


def test_random_squares_are_a_tenth_to_a_half_of_the_shorter_side() -> None:
    (squares,) = _random_squares(torch.tensor([[200.0, 60]]), 4000)
    sides = (squares[:, 2:] - squares[:, :2]) / 60
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    assert sides.amin().item() == pytest.approx(0.1, abs=2e-3)
    assert sides.amax().item() == pytest.approx(0.5, abs=2e-3)
    assert (squares >= 0).all() and (squares[:, 2:] <= torch.tensor([200, 60])).all()
    wanted = torch.tensor([0.0, 0, 200, 60])
    reached = torch.cat([squares[:, :2].amin(0), squares[:, 2:].amax(0)])
    torch.testing.assert_close(reached, wanted, atol=1, rtol=0)


# -------------------------------------------------------------------- factors


class Plain(Distillation):
    """Compares what it is given."""

    kind = "plain"
    needs = Needs()


def test_a_loss_is_a_mean_whatever_the_size_of_the_batch() -> None:
    head = Plain(dict(cosine=dict(type="CosineDistance", loss_weight=2.0)))
    embeds, targets = torch.randn(5, 8), F.normalize(torch.randn(5, 8), dim=1)
    weights = torch.tensor([1.0, 2, 3, 4, 0])
    one = head.compare(embeds, targets, weights)["loss_plain_cosine"]
    by_hand = (CosineDistance()(embeds, targets) * weights).sum() / 10 * 2
    torch.testing.assert_close(one, by_hand)
    # the same embeddings three times, and weights of another size, are the same loss
    thrice = [t.repeat(3, *[1] * (t.ndim - 1)) for t in (embeds, targets, 7 * weights)]
    torch.testing.assert_close(head.compare(*thrice)["loss_plain_cosine"], one)


@pytest.mark.parametrize("name", ["region", "dense", "global"])
def test_a_batch_twice_over_has_the_same_loss(
    name: str, build_detector: Callable[..., Any]
) -> None:
    """No factor of the number of images is left, or missing."""
    heads: dict[str, dict[str, Any]] = dict(
        region=dict(type="RegionDistillation", sources=("truth",), distances=COSINE),
        dense=dict(type="DenseDistillation", points=10**6, distances=COSINE),
    )
    heads["global"] = dict(
        type="ImageDistillation", projection=PROJECTION, distances=COSINE
    )
    model = build_detector(distill={"one": heads[name]}).eval()
    model.bbox_head.train()
    torch.manual_seed(0)
    losses = []
    for number in (1, 2):
        data = batch(model, 1)
        inputs = data["inputs"].repeat(number, 1, 1, 1)
        samples = data["data_samples"] * number
        found = model.loss(inputs, samples)
        losses.append({k: v for k, v in found.items() if k.endswith("cosine")})
    assert losses[0]
    for key, value in losses[0].items():
        torch.testing.assert_close(losses[1][key], value, rtol=1e-4, atol=1e-5)


COSINE = dict(cosine=dict(type="CosineDistance"))


# --------------------------------------------------------------------- borders

BORDERS: dict[str, tuple[Callable[[Any], Any], Any, Sequence[Any]]] = {
    "temperature": (initial_logit_scale, 0.01, [0.0099, 0.0, float("nan")]),
    "background": (lambda n: TextClassifier(n, background=True), 1, [0]),
    "words": (lambda n: RandomVocabulary(*n), (1, 1), [(1, 0), (1, 2)]),
    "absent": (lambda n: RandomVocabulary(federated=n), 0, [-1]),
    "warmup": (lambda w: RegionPicker(warmup=w), 0, [1, -1e-3]),
    "levels": (lambda n: PixelProjection([8] * n, 4), 2, [1]),
    "locations": (lambda n: CandidateLocations(torch.randn(3, 4), n), 1, [0]),
    "probes": (lambda n: CandidateLocations(torch.randn(3, 4), 1, n), 1, [0, -1]),
    "windows": (
        lambda n: check_windows(dict(window=n[0], stride=n[1]), 32),
        (64, 64),
        [(64, 96), (64, -32), (48, 32), (64, 48)],
    ),
}


@pytest.mark.parametrize("name", BORDERS)
def test_the_last_good_value_is_taken_and_the_next_refused(name: str) -> None:
    make, good, bad = BORDERS[name]
    make(good)
    for value in bad:
        with pytest.raises(ValueError):
            make(value)


@pytest.mark.parametrize(
    ("size", "ends"), [(1, [2, 3, 6]), (2, [2, 6]), (3, [3, 6]), (4, [6]), (9, [6])]
)
def test_parts_end_where_a_class_ends(size: int, ends: list[int]) -> None:
    """Three classes, of two, one and three words."""
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    assert [*_parts(6, owner, size)] == [*zip([0, *ends], ends)]
    every = [*range(0, 6, size), 6]
    assert [*_parts(6, None, size)] == [*zip(every, every[1:])]


def test_what_a_head_needs_does_not_change() -> None:
    """It is compared with what a store holds, and is a key."""
    with pytest.raises(FrozenInstanceError):
        Needs().images = True  # type: ignore[misc]
    assert {Needs(): 1}[Needs()] == 1
