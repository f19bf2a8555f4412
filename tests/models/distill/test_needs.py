"""What a distillation head declares to need is what it asks of its teacher."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from kdeov_mm.models import Distillation, KDEOVDetector, RegionEmbeds, StudentBatch
from kdeov_mm.models.distill.regions import SOURCES

from ...conftest import EMBED_DIMS, make_sample

SIDE = 64
CHANNELS = [64, 128]
COSINE = dict(cosine=dict(type="CosineDistance"))
PROJECTION = dict(type="GlobalProjection", in_channels=CHANNELS, embed_dims=EMBED_DIMS)
CONTRAST = dict(type="InfoNCE")
REGION = dict(type="RegionDistillation", distances=COSINE, warmup=0)
IMAGE = dict(type="ImageDistillation", projection=PROJECTION)
HEAD = dict(type="GlobalHead", projection=PROJECTION, warmup=0)
CROPS = dict(crops=1.0, crop_sizes=(32, 64))
STORED = [4.0, 6, 30, 44]

CONFIGS: dict[str, dict[str, Any]] = {
    "attention": dict(type="AttentionDistillation", distances=COSINE),
    "dense": dict(type="DenseDistillation", distances=COSINE),
    "dense windows": dict(
        type="DenseDistillation", distances=COSINE, window=24, stride=16
    ),
    **{f"region {source}": REGION | dict(sources=(source,)) for source in SOURCES},
    "region scales": REGION | dict(scales=(1.0, 2.0), grids=(2,), sources=("blocks",)),
    "region all": REGION | dict(sources=SOURCES),
    "image": IMAGE | dict(distances=COSINE),
    "image contrast": IMAGE | dict(contrast=CONTRAST),
    "image both": IMAGE | dict(distances=COSINE, contrast=CONTRAST),
    "image by regions": IMAGE
    | dict(distances=COSINE, target="regions", sources=("truth", "blocks")),
    "head": HEAD | dict(distances=COSINE, contrast=CONTRAST),
    "head crops": HEAD
    | dict(distances=COSINE, sources=("truth", "own"), calibrate=0.1, **CROPS),
    "head regions": HEAD
    | dict(distances=COSINE, sources=("stored",), target="regions", **CROPS),
}


class Recording:
    """A teacher of a batch that answers at random and keeps what it was asked."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.asked: set[str] = set()
        self.boxes: list[list[Tensor]] = []
        self.scales: list[tuple[float, ...]] = []

    def answer(self, method: str, *shape: int) -> Tensor:
        self.asked.add(method)
        return F.normalize(torch.randn(*shape), dim=1)

    def images(self) -> Tensor:
        return self.answer("images", self.batch_size, EMBED_DIMS)

    def dense(self) -> Tensor:
        return self.answer("dense", self.batch_size, EMBED_DIMS, 4, 4)

    def captions(self, captions: Sequence[str]) -> Tensor:
        assert len(captions) == self.batch_size
        return self.answer("captions", self.batch_size, EMBED_DIMS)

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        self.boxes.append(list(boxes))
        self.scales.append(tuple(scales))
        return self.answer("crops", sum(map(len, boxes)), EMBED_DIMS)

    def stored_boxes(self, index: int) -> Tensor:
        assert 0 <= index < self.batch_size
        self.asked.add("stored_boxes")
        return torch.tensor([STORED])


def make_samples() -> SampleList:
    truth = [[[8.0, 8, 40, 40], [30, 20, 62, 50]], [[4.0, 10, 20, 60]]]
    return [
        make_sample(boxes, range(len(boxes)), caption=f"scene {i}")
        for i, boxes in enumerate(truth)
    ]


def crop_features(boxes: Sequence[Tensor], side: int) -> tuple[list[Tensor], Tensor]:
    number = sum(map(len, boxes))
    feats = [torch.rand(number, c, side // 16, side // 16) for c in CHANNELS]
    return feats, torch.ones(number, 2)


def make_student(samples: SampleList) -> StudentBatch:
    """Everything that a detector says; two levels of locations."""
    sizes = [8, 4]
    feats = [torch.randn(len(samples), c, s, s) for c, s in zip(CHANNELS, sizes)]
    centres = torch.cat(
        [torch.cartesian_prod(*[(torch.arange(s) + 0.5) * SIDE / s] * 2) for s in sizes]
    )
    number = len(centres)
    boxes = centres.repeat(1, 2) + torch.tensor([-1.0, -1, 1, 1]) * 12
    regions = RegionEmbeds(
        torch.randn(len(samples), number, EMBED_DIMS, requires_grad=True),
        boxes.expand(len(samples), -1, -1),
        torch.rand(len(samples), number),
        centres,
    )
    text = F.normalize(torch.randn(3, EMBED_DIMS), dim=1)
    return StudentBatch(feats, samples, text, regions, feats, crop_features)


def run(name: str) -> tuple[Distillation, Recording, dict[str, Tensor], SampleList]:
    head = MODELS.build(CONFIGS[name]).train()
    samples = make_samples()
    teacher = Recording(len(samples))
    return head, teacher, head.loss(make_student(samples), teacher), samples


def registered() -> set[type[Distillation]]:
    return {
        kind
        for kind in MODELS.module_dict.values()
        if inspect.isclass(kind) and issubclass(kind, Distillation)
        if kind.__module__.startswith("kdeov_mm.")
    }


def test_every_distillation_is_tried() -> None:
    tried = {MODELS.get(cfg["type"]) for cfg in CONFIGS.values()}
    assert tried == registered()


@pytest.mark.parametrize(
    "kind", sorted(registered(), key=repr), ids=lambda kind: kind.__name__
)
def test_a_loss_takes_the_student_and_the_teacher(kind: type[Distillation]) -> None:
    parameters = inspect.signature(kind.loss).parameters
    assert [*parameters] == ["self", "student", "teacher"]
    kinds = {p.kind for p in parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert all(p.default is p.empty for p in parameters.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_asks_what_it_declares_and_nothing_else(name: str) -> None:
    head, teacher, losses, _ = run(name)
    needs = head.needs
    declared = {
        "images": needs.images,
        "dense": needs.dense,
        "captions": needs.captions,
        "crops": needs.crops,
        "stored_boxes": "stored" in needs.sources,
    }
    assert teacher.asked == {method for method, needed in declared.items() if needed}
    assert losses and all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_have_the_declared_names(name: str) -> None:
    head, _, losses, _ = run(name)
    assert set(losses) <= set(head.loss_names)
    assert all(key.startswith(f"loss_{head.kind}_") for key in losses)
    assert all(value.ndim == 0 for value in losses.values())


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if "crops" not in c])
def test_crops_have_the_declared_scales_and_the_fixed_boxes(name: str) -> None:
    head, teacher, _, samples = run(name)
    needs = head.needs
    assert teacher.scales == ([needs.scales] if needs.crops else [])
    asked = teacher.boxes[0] if teacher.boxes else [torch.zeros(0, 4)] * len(samples)
    for boxes, sample in zip(asked, samples, strict=True):
        fixed = head.fixed_boxes(sample)
        # what is not fixed comes from the store, or moves from step to step
        others = [box for box in boxes.tolist() if box not in fixed.tolist()]
        if "stored" in needs.sources:
            assert STORED in others
            others.remove(STORED)
        assert bool(others) == bool(needs.moving)
        assert all(box in boxes.tolist() for box in fixed.tolist())


def test_windows_have_the_declared_side_and_stride() -> None:
    head, teacher, _, _ = run("dense windows")
    for boxes in teacher.boxes[0]:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert (boxes[:, 2:] - boxes[:, :2] == head.needs.window).all()
        assert centres[1, 0] - centres[0, 0] == head.needs.stride


def test_blocks_have_the_declared_grids() -> None:
    head, teacher, _, _ = run("region scales")
    assert head.needs.grids == (2,) and head.needs.scales == (1.0, 2.0)
    assert all(len(boxes) == 4 for boxes in teacher.boxes[0])
    assert MODELS.build(CONFIGS["region truth"]).needs.grids == ()


@pytest.mark.parametrize("source", SOURCES)
def test_boxes_of_the_student_and_random_ones_move(source: str) -> None:
    needs = MODELS.build(CONFIGS[f"region {source}"]).needs
    assert needs.moving == ((source,) if source in ("own", "random") else ())


@pytest.mark.parametrize("name", ["attention", "dense", "region truth"])
def test_a_student_without_regions_is_refused(name: str) -> None:
    head, samples = MODELS.build(CONFIGS[name]), make_samples()
    student = make_student(samples)._replace(regions=None)
    with pytest.raises(ValueError, match="needs a student with"):
        head.loss(student, Recording(len(samples)))


# ------------------------------------------------------------------ image heads


@pytest.mark.parametrize("kind", ["ImageDistillation", "GlobalDistillation"])
def test_an_image_distillation_with_crops_is_refused_when_it_is_built(
    kind: str,
) -> None:
    cfg = dict(CONFIGS["head crops"], type=kind, calibrate=0.0)
    with pytest.raises(ValueError, match=r"embedded by model\.global_head"):
        MODELS.build(cfg)
    MODELS.build(dict(cfg, type="GlobalHead"))


def test_crops_need_a_student_that_embeds_them() -> None:
    head, samples = MODELS.build(CONFIGS["head crops"]), make_samples()
    student = make_student(samples)._replace(crop_features=None)
    with pytest.raises(ValueError, match="crop_features"):
        head.loss(student, Recording(len(samples)))


def test_calibration_needs_a_student_with_words() -> None:
    head, samples = MODELS.build(CONFIGS["head crops"]), make_samples()
    student = make_student(samples)._replace(text=None)
    with pytest.raises(ValueError, match="student with words"):
        head.loss(student, Recording(len(samples)))


@pytest.mark.parametrize("fused", [True, False])
def test_a_global_head_embeds_the_maps_before_fusion(fused: bool) -> None:
    """In `distill`, it is the maps after fusion; a student may have one kind only."""
    samples = make_samples()
    student = make_student(samples)
    plain = [torch.randn_like(feat) for feat in student.feats]
    student = student._replace(image_feats=plain if fused else None)
    for name, wanted in (
        ("image", student.feats),
        ("head", plain if fused else student.feats),
    ):
        head = MODELS.build(dict(CONFIGS[name], contrast=None))
        assert head.image_feats(student) is wanted


def test_one_temperature_serves_captions_and_calibration() -> None:
    cfg = dict(CONFIGS["head crops"], contrast=CONTRAST)
    head, samples = MODELS.build(cfg).train(), make_samples()
    head.classifier.logit_scale.data.fill_(9.0)
    losses = head.loss(make_student(samples), Recording(len(samples)))
    assert {"loss_global_contrast", "loss_global_calibration"} < set(losses)
    sum(losses.values()).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_a_detector_gives_its_heads_by_name(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build_detector()
    assert [*model.distill_heads] == [*model.distill]
    needs = model.distill_heads["region"].needs
    assert needs.crops and not (needs.images or needs.dense or needs.captions)
