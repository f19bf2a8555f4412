"""Distillation of crops into locations."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from torch import Tensor
from torchvision.ops import box_iou

from kdeov_mm.clip import CachedTeacher, CLIPImageTeacher, LiveBatch
from kdeov_mm.models import RegionDistillation, RegionEmbeds, StudentBatch
from kdeov_mm.models.distill.regions import block_boxes
from kdeov_mm.models.student import training_progress

from ...conftest import EMBED_DIMS, make_sample, match

SIDE, STRIDE = 64, 8
CENTRES = torch.cartesian_prod(*[torch.arange(STRIDE / 2, SIDE, STRIDE)] * 2)


class KnownTeacher:
    """Embeds each box as a direction of its own; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Tensor]] = []

    def direction(self, box: Tensor) -> Tensor:
        torch.manual_seed(int(box.sum() * 97) % 10**6)
        return F.normalize(torch.randn(EMBED_DIMS), dim=0)

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        self.asked.append(list(boxes))
        return torch.stack([self.direction(b) for b in torch.cat(list(boxes))])


def make_locations(batch: int = 1, **changes: Any) -> RegionEmbeds:
    """64 locations; each holds a 24 px box about its centre, jittered."""
    torch.manual_seed(0)
    n = len(CENTRES)
    half = 12 + torch.rand(batch, n, 4) * 2
    signs = torch.tensor([-1.0, -1, 1, 1])
    fields = dict(
        embeds=torch.randn(batch, n, EMBED_DIMS, requires_grad=True),
        boxes=CENTRES.repeat(1, 2) + signs * half,
        sharpness=torch.rand(batch, n),
        centres=CENTRES,
    )
    return RegionEmbeds(**{**fields, **changes})


def make_head(loss_weight: float = 8.0, **changes: Any) -> RegionDistillation:
    cosine = dict(type="CosineDistance", loss_weight=loss_weight)
    return RegionDistillation(**{"distances": dict(cosine=cosine), **changes})


def regions_of(
    head: RegionDistillation,
    samples: list[Any],
    regions: RegionEmbeds,
    teacher: Any = None,
) -> list[Tensor]:
    return head.pick(StudentBatch((), samples, regions=regions), teacher).split()


def run(
    head: RegionDistillation,
    samples: list[Any],
    regions: RegionEmbeds,
    teacher: Any,
    progress: float = 1.0,
) -> Tensor:
    student = StudentBatch((), samples, regions=regions, progress=progress)
    losses = head.loss(student, teacher)
    assert list(losses) == ["loss_region_cosine"]
    return losses["loss_region_cosine"]


def live(clip: str, batch: int = 1) -> LiveBatch:
    """A real image tower, and noise."""
    pixels = torch.rand(batch, 3, SIDE, SIDE)
    return LiveBatch(CLIPImageTeacher(clip), pixels, [(SIDE, SIDE)] * batch)


TRUTH = [[10.0, 10, 36, 34], [40, 30, 64, 60]]


# --------------------------------------------------------------------- regions


def test_regions_begin_with_the_ground_truth() -> None:
    samples = [make_sample(TRUTH, [0, 1]), make_sample()]
    first, second = regions_of(make_head(), samples, make_locations(batch=2))
    assert first[:2].tolist() == TRUTH
    assert len(first) > 2 and len(second) > 0


def test_objects_of_which_less_than_half_is_left_are_no_regions() -> None:
    """And not asked about as the student's own boxes either."""
    sample = make_sample(TRUTH, [0, 1])
    sample.gt_instances.visible = torch.tensor([0.4, 0.6])
    head = make_head(proposals=64)
    (regions,) = regions_of(head, [sample], make_locations())
    assert regions[0].tolist() == TRUTH[1]
    assert box_iou(regions[1:], torch.tensor(TRUTH)).max() <= 0.5


def test_regions_are_never_duplicates() -> None:
    head = make_head(proposals=50, nms_iou=0.4)
    (regions,) = regions_of(head, [make_sample(TRUTH, [0, 1])], make_locations())
    overlap = box_iou(regions, regions).fill_diagonal_(0)
    overlap[:2, :2] = 0  # what the labels say is not ours to judge
    assert len(regions) > 6
    assert overlap.max() <= 0.4


def test_own_regions_stay_within_the_image_and_not_in_its_padding() -> None:
    sample = make_sample(TRUTH[:1], [0], shape=(40, 48))
    (regions,) = regions_of(make_head(proposals=50), [sample], make_locations())
    own = regions[1:]
    assert (own >= 0).all() and (own[:, 0::2] <= 48).all()
    assert (own[:, 1::2] <= 40).all()
    assert ((own[:, 2:] - own[:, :2]) > 4).all()
    assert own[:, 2:].amax() == 48  # boxes at the border are kept, cut


def test_there_are_as_many_own_regions_as_asked_and_the_best() -> None:
    (few,) = regions_of(make_head(proposals=3), [make_sample()], make_locations())
    (many,) = regions_of(make_head(proposals=9), [make_sample()], make_locations())
    assert len(few) == 3 and torch.equal(many[:3], few)
    (none,) = regions_of(make_head(proposals=0), [make_sample()], make_locations())
    assert len(none) == 0


def test_the_warm_up_knows_ground_truth_only() -> None:
    samples, teacher = [make_sample(TRUTH, [0, 1])], KnownTeacher()
    head = make_head(warmup=0.3)
    for progress in (0.0, 0.1, 0.29, 0.3, 1.0):
        run(head, samples, make_locations(), teacher, progress)
    counts = [len(regions) for (regions,) in teacher.asked]
    assert counts[:3] == [2, 2, 2]
    assert min(counts[3:]) > 2


def test_the_warm_up_is_a_part_of_the_training_however_long() -> None:
    hub = MessageHub.get_instance("a training")
    for done, planned in ((0, 800), (50, 800), (5000, 80_000), (800, 800)):
        hub.update_info("iter", done)
        hub.update_info("max_iters", planned)
        assert training_progress() == done / planned
    for steps in (50, 1):
        with pytest.raises(ValueError, match=f"from 0 to below 1.*got {steps}"):
            make_head(warmup=steps)


def test_checkpoints_that_counted_steps_are_read() -> None:
    head = make_head()
    assert not head.state_dict()
    head.load_state_dict({"steps": torch.tensor(800)})


# -------------------------------------------------------------------- matching


def test_weights_of_a_matched_region_sum_to_one() -> None:
    head = make_head(match_iou=0.3, locations=4)
    regions = torch.tensor([*TRUTH, [0.0, 0, 3, 3]])  # no location lies in the third
    where, which, weight = match(head, regions, make_locations(), 0)
    sums = torch.zeros(3).index_add(0, which, weight)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1, 0]))
    assert where.bincount().max() >= 1 and which.bincount().max() <= 4


def test_ground_truth_finds_a_location_however_bad_the_boxes() -> None:
    """Early boxes overlap nothing well; the labels teach all the same."""
    boxes = torch.cat([CENTRES - 1, CENTRES + 1], 1)[None]
    _, which, _ = match(
        make_head(match_iou=0.9), torch.tensor(TRUTH), make_locations(boxes=boxes)
    )
    assert set(which.tolist()) == {0, 1}


def test_matched_locations_are_the_best_of_those_in_the_region() -> None:
    locations, regions = make_locations(), torch.tensor(TRUTH)
    where, which, _ = match(make_head(match_iou=0.5, locations=5), regions, locations)
    overlap = box_iou(regions, locations.boxes[0])
    for i, region in enumerate(regions):
        inside = ((region[:2] < CENTRES) & (region[2:] > CENTRES)).all(1)
        mine = torch.zeros(len(CENTRES), dtype=torch.bool)
        mine[where[which == i]] = True
        assert 0 < mine.sum() <= 5 and inside[mine].all()
        assert overlap[i, mine].min() > overlap[i, inside & ~mine].max()
        assert overlap[i, mine].min() > 0


# ------------------------------------------------------------------------ loss


def test_loss_is_zero_when_locations_say_what_the_teacher_says() -> None:
    teacher, head = KnownTeacher(), make_head(match_iou=0.9, nms_iou=0.3)
    samples, locations = [make_sample(TRUTH, [0, 1])] * 2, make_locations(batch=2)
    assert run(head, samples, locations, teacher) > 0.1
    embeds = torch.zeros_like(locations.embeds)
    for image, regions in enumerate(teacher.asked[0]):
        where, which, _ = match(head, regions, locations, image)
        for place, region in zip(where, which, strict=True):
            embeds[image, place] = 5 * teacher.direction(regions[region])
        assert len(where) == len(set(where.tolist()))
    equal = locations._replace(embeds=embeds)
    assert run(head, samples, equal, teacher).abs() < 1e-5


def test_every_region_counts_the_same_however_many_locations_it_has() -> None:
    """One region at distance 1 with many locations, one at 0 with one: half."""
    boxes = make_locations().boxes.clone()
    boxes[0, :5] = torch.tensor([0.0, 0, 8, 64])  # the locations of the left column
    boxes[0, 5:] = 1000.0
    boxes[0, 20] = torch.tensor([16.0, 24, 32, 48])
    regions = [[0.0, 0, 8, 64], [16.0, 24, 32, 48]]
    embeds = torch.zeros(1, 64, EMBED_DIMS)
    embeds[0, :, 0] = 1

    class Split(KnownTeacher):
        def direction(self, box: Tensor) -> Tensor:
            return torch.eye(EMBED_DIMS)[1 if box[0] == 0 else 0]

    head = make_head(proposals=0, loss_weight=1.0)
    locations = make_locations(boxes=boxes, embeds=embeds)
    loss = run(head, [make_sample(regions, [0, 1])], locations, Split())
    assert loss == pytest.approx(0.5)


def test_loss_weight_is_a_factor() -> None:
    losses = [
        run(make_head(loss_weight=w), [make_sample(TRUTH, [0, 1])], make_locations(),
            KnownTeacher())
        for w in (1.0, 3.0)
    ]  # fmt: skip
    torch.testing.assert_close(losses[0] * 3, losses[1])


def test_gradient_pulls_matched_locations_and_no_others() -> None:
    teacher, head = KnownTeacher(), make_head(proposals=0, match_iou=0.3)
    locations = make_locations()
    run(head, [make_sample(TRUTH, [0, 1])], locations, teacher).backward()
    moved = locations.embeds.grad[0].abs().sum(-1) > 0
    where, _, _ = match(head, torch.tensor(TRUTH), locations, 0)
    assert 0 < moved.sum() < len(CENTRES)
    assert set(moved.nonzero().flatten().tolist()) == set(where.tolist())


@pytest.mark.parametrize("progress", [0.0, 1.0], ids=["warm-up", "after"])
def test_no_boxes_at_all_give_a_finite_zero(tiny_clip: str, progress: float) -> None:
    """No labels, and nothing of the student's own: with a real image tower."""
    locations = make_locations(batch=2, boxes=torch.zeros(2, 64, 4))
    samples, teacher = [make_sample(), make_sample()], live(tiny_clip, 2)
    loss = run(make_head(), samples, locations, teacher, progress)
    loss.backward()
    assert loss == 0 and (locations.embeds.grad == 0).all()


def test_regions_at_and_beyond_the_border_give_a_finite_loss(tiny_clip: str) -> None:
    edge = [[0.0, 0, 12, 64], [52, 52, 64, 64], [0, 0, 64, 64]]
    locations = make_locations()
    loss = run(
        make_head(match_iou=0.1), [make_sample(edge, [0, 1, 2])], locations,
        live(tiny_clip),
    )  # fmt: skip
    loss.backward()
    assert loss > 0 and loss.isfinite() and locations.embeds.grad.isfinite().all()


def test_the_head_does_not_change_what_the_student_said() -> None:
    locations, sample = make_locations(), make_sample(TRUTH, [0, 1])
    before = [t.detach().clone() for t in locations[:4]]
    run(make_head(), [sample], locations, KnownTeacher())
    for kept, now in zip(before, locations[:4], strict=True):
        assert torch.equal(kept, now)
    assert sample.gt_instances.bboxes.tolist() == TRUTH


# --------------------------------------------------------------------- sources


@pytest.mark.parametrize("sources", [("truth", "own"), ("truth", "stored")])
def test_locations_of_objects_without_a_label_are_marked(
    sources: tuple[str, ...],
) -> None:
    """And no others: neither those of labelled objects, nor of tiles."""
    teacher = KnownTeacher()
    stored = torch.tensor([TRUTH[0], [2.0, 44, 26, 62]])  # a labelled one, and another
    teacher.stored_boxes = lambda i: stored[i:]  # type: ignore[attr-defined]
    samples, nothing = [make_sample(TRUTH, [0, 1])] * 2, torch.zeros(2, 64).bool()
    head = make_head(sources=(*sources, "blocks"), grids=(2,))
    locations = make_locations(batch=2, unlabelled=nothing.clone())
    run(head, samples, locations, teacher)
    expected = nothing.clone()
    for image in range(2):
        own = head.own_boxes(samples, locations)[image]
        free = own if "own" in sources else stored[1:]
        expected[image, match(head, free, locations, image)[0]] = True
    assert 0 < expected.sum() < 64
    assert torch.equal(locations.unlabelled, expected)
    # where they are background all the same, and before there are own boxes
    locations.unlabelled.zero_()
    run(make_head(background=True, sources=sources), samples, locations, teacher)
    run(make_head(warmup=0.1), samples, locations, teacher, progress=0.0)
    run(make_head(sources=("truth", "random", "blocks")), samples, locations, teacher)
    assert not locations.unlabelled.any()


def test_each_source_gives_its_regions_in_their_order() -> None:
    class Store(KnownTeacher):
        def stored_boxes(self, i: int) -> Tensor:
            return torch.tensor([[1.0, 2, 30, 40]])

    sample, locations = make_sample(TRUTH, [0, 1], shape=(48, 64)), make_locations()
    head = make_head(sources=("stored", "random", "blocks", "truth"), proposals=7)
    (regions,) = regions_of(head, [sample], locations, Store())
    assert len(regions) == 1 + 7 + 4 + 9 + 16 + 2
    assert regions[0].tolist() == [1, 2, 30, 40] and regions[-2:].tolist() == TRUTH
    assert (regions[1:-2] >= 0).all()
    assert (regions[1:-2, 2] <= 64).all() and (regions[1:-2, 3] <= 48).all()
    assert regions[8].tolist() == [0, 0, 32, 24]  # the first tile of 2 x 2
    again, _ = regions_of(head, [sample, sample], locations._replace(
        boxes=locations.boxes.expand(2, -1, -1)), Store())  # fmt: skip
    assert not torch.equal(again[1:8], regions[1:8])  # random each time
    assert torch.equal(again[8:], regions[8:])


def test_tiles_cover_the_image_once_per_grid_and_are_the_same_mirrored() -> None:
    tiles = block_boxes((60, 90), (2, 3))
    area = ((tiles[:, 2:] - tiles[:, :2]).prod(1)).sum()
    assert len(tiles) == 13 and area == pytest.approx(2 * 60 * 90)
    mirrored = torch.stack(
        [90 - tiles[:, 2], tiles[:, 1], 90 - tiles[:, 0], tiles[:, 3]], 1
    )
    assert set(map(tuple, mirrored.tolist())) == set(map(tuple, tiles.tolist()))


@pytest.mark.parametrize("sources", [(), ("truth", "owl")])
def test_unknown_sources_are_refused(sources: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="sources"):
        make_head(sources=sources)


def test_matching_a_batch_is_matching_its_images() -> None:
    head, locations = make_head(), make_locations(batch=3)
    regions = [torch.tensor(TRUTH), torch.zeros(0, 4), torch.tensor(TRUTH[1:])]
    image = torch.tensor([0, 0, 2])
    where, which, weight = match(head, torch.cat(regions), locations, image)
    begin = 0
    for i, boxes in enumerate(regions):
        here = image[which] == i
        alone = match(head, boxes, locations, i)
        assert torch.equal(where[here], alone[0])
        assert torch.equal(which[here], alone[1] + begin)
        assert torch.equal(weight[here], alone[2])
        begin += len(boxes)


# ----------------------------------------------------------- a teacher that errs


def test_small_objects_are_no_regions() -> None:
    head = make_head(min_side=24.5)
    regions = make_locations()  # of 24 to 28 px
    large = [30.0, 30, 64, 60]
    (boxes,) = regions_of(head, [make_sample([TRUTH[0], large], [0, 1])], regions)
    assert boxes[0].tolist() == large and TRUTH[0] not in boxes.tolist()
    assert len(boxes) == 6 and (boxes[:, 2:] - boxes[:, :2]).min() > 24.5


class Scaled:
    """Answers with one direction at 1x, and at 1.5x with another for some boxes."""

    def __init__(self, large: Tensor) -> None:
        self.answers = {1.0: torch.eye(EMBED_DIMS)[:2], 1.5: large}

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        return F.normalize(sum(self.answers[s] for s in scales), dim=-1)


@pytest.mark.parametrize("trust", [None, "scales", "words"])
def test_what_an_unsure_teacher_says_counts_less(trust: str | None) -> None:
    """Weighted means by hand: of two regions, the second one's answers differ."""
    side = torch.eye(EMBED_DIMS)[2] * 0.8 + torch.eye(EMBED_DIMS)[1] * 0.6
    teacher = Scaled(torch.stack([torch.eye(EMBED_DIMS)[0], side]))
    # the student says what the teacher says of the first, everywhere
    regions = make_locations(embeds=torch.eye(EMBED_DIMS)[:1].repeat(64, 1)[None])
    text = torch.eye(EMBED_DIMS)[[0, 1, 2]]
    head = make_head(1.0, trust=trust, sources=("truth",), temperature=0.5)
    student = StudentBatch((), [make_sample(TRUTH, [0, 1])], text, regions)
    loss = head.loss(student, teacher)["loss_region_cosine"]
    # the distance of the first is 0, of the second 1
    second = teacher.crops([], (1.0, 1.5))[1, :3] / 0.5
    first = torch.tensor([2.0, 0, 0]).softmax(0).max()
    weights = dict(
        scales=(1.0, 0.6), words=(float(first), float(second.softmax(0).max()))
    )
    one, other = weights.get(str(trust), (1.0, 1.0))
    assert float(loss) == pytest.approx(other / (one + other), abs=1e-5)


def test_words_to_trust_and_scales_to_compare_are_needed(tiny_clip: str) -> None:
    with pytest.raises(ValueError, match="compares scales"):
        make_head(trust="scales", scales=(1.0,))
    with pytest.raises(ValueError, match="'scales', 'words' or None"):
        make_head(trust="size")
    student = StudentBatch((), [make_sample(TRUTH, [0, 1])], None, make_locations())
    with pytest.raises(ValueError, match="scores words"):
        make_head(trust="words").loss(student, KnownTeacher())
    with pytest.raises(ValueError, match="a store holds their sums"):
        CachedTeacher("store", tiny_clip).check_heads(
            dict(region=make_head(trust="scales"))
        )
