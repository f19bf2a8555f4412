"""Any backbone with a global head; what it learns from, and what stays frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor

from kdeov_mm.models import GlobalHead, ImageTextModel, StudentBatch
from kdeov_mm.models.pixels import crop_to_fit, frozen_statistics, untouched

from ..conftest import EMBED_DIMS, ROOT, WORDS, make_sample

IMAGE_TEXT = ROOT / "configs/image_text"
BACKBONES = {
    "resnet50": ("r50_shapes.py", 512),
    "efficientnet": ("efficientnet_b0_shapes.py", 512),
    "yolov8": ("yolov8_n_shapes.py", 512),
}


@pytest.fixture
def build(load_config: Callable[..., Config]) -> Callable[..., ImageTextModel]:
    def make(name: str, **changes: Any) -> ImageTextModel:
        cfg = load_config(IMAGE_TEXT / name)
        cfg.merge_from_dict({f"model.{key}": value for key, value in changes.items()})
        model = MODELS.build(cfg.model)
        model.init_weights()
        return model

    return make


def batch(model: Any, number: int = 3, **meta: Any) -> dict[str, Any]:
    """Noise images through the model's preprocessor."""
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(number)]
    samples = [
        make_sample(caption=f"thing {i}", captions=(f"thing {i}", "another"), **meta)
        for i in range(number)
    ]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), True)


@pytest.mark.parametrize("kind", BACKBONES)
def test_any_backbone_speaks_clips_language(
    kind: str, build: Callable[..., ImageTextModel]
) -> None:
    name, hidden = BACKBONES[kind]
    model = build(name).eval()
    said = model(**batch(model), mode="tensor")
    assert said["visual_features"].shape == (3, EMBED_DIMS)
    assert said["text_features"].shape == (len(WORDS), EMBED_DIMS)
    assert said["logits"].shape == (3, len(WORDS))
    assert said["fused_map"] is None and said["predictions"] is None
    assert all(len(level) == 3 for level in said["visual_map"])
    for key in ("visual_features", "text_features"):
        norms = said[key].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    projection = model.global_head.projection
    levels = getattr(projection, "levels", None)
    first, activation, second = levels[0][1] if levels else projection.mlp
    assert isinstance(activation, torch.nn.GELU)
    assert first.out_features == second.in_features == hidden


@pytest.mark.parametrize("kind", BACKBONES)
def test_only_the_image_side_is_in_the_optimizer(
    kind: str, build: Callable[..., ImageTextModel], load_config: Callable[..., Config]
) -> None:
    model = build(BACKBONES[kind][0])
    wrapper = load_config(IMAGE_TEXT / BACKBONES[kind][0]).optim_wrapper
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in model.get_trainable_parameters()}
    assert given == trainable
    named = {id(p): n.split(".")[0] for n, p in model.named_parameters()}
    parts = {"backbone", "global_head"} | ({"neck"} if kind == "yolov8" else set())
    assert {named[i] for i in given} == parts
    model.text_encoder.embed_prompts(["a thing"])  # loads the tower
    tower = {id(p) for p in model.text_encoder._tower.parameters()}
    assert tower and not tower & given
    assert not any(p.requires_grad for p in model.text_encoder._tower.parameters())
    assert not [key for key in model.state_dict() if "text" in key]


def test_a_step_changes_the_image_side_alone(
    build: Callable[..., ImageTextModel],
) -> None:
    model = build("yolov8_n_shapes.py").train()
    model.text_encoder.embed_prompts(["a thing"])
    tower = [p.clone() for p in model.text_encoder._tower.parameters()]
    losses = model(**batch(model), mode="loss")
    assert set(losses) == {"loss_global_contrast"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.get_trainable_parameters())
    after = model.text_encoder._tower.parameters()
    assert all(p.grad is None and p.equal(q) for p, q in zip(after, tower))


def test_the_summary_counts_every_parameter_once(
    build: Callable[..., ImageTextModel],
) -> None:
    model = build("r50_shapes.py")
    rows = [line.split() for line in model.parameter_summary().splitlines()[1:]]
    total = sum(p.numel() for p in model.parameters()) / 1e3
    tower = model.text_encoder.num_parameters() / 1e3
    name, trainable, _, frozen, _ = rows[-1]
    assert name == "together"
    assert float(trainable) == pytest.approx(total, abs=0.1)
    assert float(frozen) == pytest.approx(tower, abs=0.1)
    assert [row[0] for row in rows[:2]] == ["backbone", "global_head"]


def test_frozen_parts_are_counted_as_frozen(
    build: Callable[..., ImageTextModel],
) -> None:
    model = build("r50_shapes.py")
    model.backbone.requires_grad_(False)
    row = model.parameter_summary().splitlines()[1].split()
    assert row[0] == "backbone" and float(row[1]) == 0 and float(row[3]) > 20_000


def test_predictions_are_a_distribution_and_a_ranking_over_the_words(
    build: Callable[..., ImageTextModel],
) -> None:
    model = build("yolov8_n_shapes.py").eval()
    data = batch(model)
    samples = model(**data, mode="predict")
    logits = model(**data, mode="tensor")["logits"]
    for sample, row in zip(samples, logits):
        torch.testing.assert_close(sample.scores, row.softmax(0))
        assert sample.ranking.tolist() == row.argsort(descending=True).tolist()
        assert sample.caption_features.shape == (2, EMBED_DIMS)


# --------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_head.projection.embed_dims": 99}, "embed_dims"),
        ({"teacher": None}, "teacher"),
        ({"global_head.sources": ("truth",)}, "KDEOVDetector"),
        ({"data_preprocessor.bgr_to_rgb": False}, "RGB"),
    ],
)
def test_a_model_that_cannot_work_is_refused(
    build: Callable[..., ImageTextModel], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build("yolov8_n_shapes.py", **changes)


def test_training_without_anything_to_learn_is_refused(
    build: Callable[..., ImageTextModel],
) -> None:
    model = build("yolov8_n_shapes.py", **{"global_head.contrast": None})
    with pytest.raises(ValueError, match="nothing to learn"):
        model.loss(**batch(model))
    with pytest.raises(ValueError, match="mode"):
        model(**batch(model), mode="train")


# ---------------------------------------------------------- one checkpoint, two paths


@pytest.fixture
def joint(build_detector: Callable[..., Any]) -> Callable[..., Any]:
    """The base student with a global head on its frozen detector."""
    projection = dict(
        type="GlobalProjection",
        in_channels=[256, 512, 1024],
        embed_dims=EMBED_DIMS,
        widen_factor=0.25,
        norm=True,
        pooling="attention",
    )
    head = dict(
        type="GlobalHead",
        projection=projection,
        distances=dict(cosine=dict(type="CosineDistance")),
        sources=("truth", "own"),
        target="regions",
        crops=1.0,
        crop_sizes=(32, 64),
        calibrate=0.1,
        warmup=0,
    )

    def make(**changes: Any) -> Any:
        return build_detector(global_head=head, **changes)

    return make


def labelled(model: Any, boxes: Any = ((8.0, 8, 40, 40),)) -> dict[str, Any]:
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    samples = [make_sample(boxes, [1] * len(boxes)) for _ in images]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), True)


def test_a_frozen_detector_stays_as_it_is_to_the_bit(
    joint: Callable[..., Any],
) -> None:
    model = joint(frozen=True, distill=None).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        losses = model(**labelled(model), mode="loss")
        assert {name.split("_")[1] for name in losses} == {"global"}
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()
    after = model.state_dict()
    changed = {key for key, old in before.items() if not after[key].equal(old)}
    assert changed and all(key.startswith("global_head.") for key in changed)
    learnt = {f"global_head.{n}" for n, _ in model.global_head.named_parameters()}
    assert learnt <= changed


def test_training_both_at_once_reaches_both(joint: Callable[..., Any]) -> None:
    model = joint().train()
    losses = model(**labelled(model), mode="loss")
    kinds = {"loss_cls", "loss_region_cosine", "loss_global_cosine"}
    assert kinds | {"loss_global_calibration"} <= set(losses)
    sum(v for k, v in losses.items() if "global_cosine" in k).backward()
    first = next(model.backbone.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


def test_calibration_teaches_the_temperature_and_nothing_else(
    joint: Callable[..., Any],
) -> None:
    model = joint().train()
    loss = model(**labelled(model), mode="loss")["loss_global_calibration"]
    loss.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"global_head.classifier.logit_scale"}


def test_images_without_any_region_give_a_loss_of_zero(
    joint: Callable[..., Any],
) -> None:
    model = joint(**{"global_head.sources": ("truth",)}).train()
    losses = model(**labelled(model, boxes=()), mode="loss")
    total = sum(v for k, v in losses.items() if "global" in k)
    total.backward()
    assert total == 0
    assert all(p.grad is not None for p in model.global_head.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"global_head": None, "frozen": True, "distill": None},
        {"frozen": True},  # with region distillation
        {"global_head.target": "scenes"},
        {"global_head.sources": ()},
        {"global_head.sources": ("own", "truth")},
    ],
)
def test_heads_that_cannot_learn_are_refused(
    joint: Callable[..., Any], build_detector: Callable[..., Any], changes: Any
) -> None:
    make = build_detector if "global_head" in changes else joint
    with pytest.raises(ValueError):
        make(**changes)


def test_the_image_text_model_says_what_the_detector_says(
    joint: Callable[..., Any], build: Callable[..., ImageTextModel], tmp_path: Path
) -> None:
    detector = joint().eval()
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / "both.pth")
    cfg = {"global_head.projection.norm": True}
    model = build("yolov8_n_shapes.py", **cfg).eval()
    load_checkpoint(model, str(tmp_path / "both.pth"), strict=False)
    data = batch(model)
    for key in ("visual_features", "text_features", "logits"):
        torch.testing.assert_close(
            model(**data, mode="tensor")[key], detector(**data, mode="tensor")[key]
        )


def test_the_joint_config_extends_the_demo(load_config: Callable[..., Config]) -> None:
    demo, both = (
        load_config(f"kdeov_n_shapes{end}.py", clip=False) for end in ("", "_joint")
    )
    page = ROOT / "configs/kdeov/kdeov_n_shapes_joint.py"
    begins = Config.fromfile(page, lazy_import=False).load_from
    assert begins == f"work_dirs/kdeov_n_shapes/iter_{demo.max_iters}.pth"
    for key in ("global_head", "frozen", "distill"):
        demo.model.pop(key, None), both.model.pop(key, None)
    assert both.model.bbox_head.head_module.pop("adapter") is None
    assert both.model.to_dict() == demo.model.to_dict()


def test_joint_training_by_config_leaves_the_detector(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config("kdeov_n_shapes_joint.py")
    cfg.train_cfg.max_iters, cfg.param_scheduler = 2, None
    detector = Config(dict(cfg.model.to_dict(), global_head=None, frozen=False))
    before = MODELS.build(detector).state_dict()
    torch.save(dict(state_dict=before), tmp_path / "detector.pth")
    cfg.work_dir, cfg.load_from = str(tmp_path), str(tmp_path / "detector.pth")
    Runner.from_cfg(cfg).train()
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=False)["state_dict"]
    assert all(saved[key].equal(value) for key, value in before.items())
    assert any(key.startswith("global_head.") for key in saved)


# ------------------------------------------------------------------------- crops


def test_crops_are_cut_and_fitted_as_the_pipeline_does() -> None:
    images = torch.rand(2, 3, 40, 60)
    boxes = [torch.tensor([[4.2, 6.4, 20.4, 38.3]]), torch.tensor([[0.0, 0, 60, 40]])]
    crops, filled = crop_to_fit(images, boxes, 32)
    assert crops.shape == (2, 3, 32, 32)
    torch.testing.assert_close(filled, torch.tensor([[1, 0.5], [21 / 32, 1]]))
    torch.testing.assert_close(
        crops[0, :, :, :16], images[0, :, 6:38, 4:20], rtol=0, atol=1e-6
    )
    assert (crops[0, :, :, 16:] == 0).all()


def test_a_box_of_no_size_or_outside_is_a_pixel_at_least() -> None:
    images = torch.rand(1, 3, 32, 32)
    boxes = torch.tensor([[5.0, 5, 5, 5], [40, 40, 50, 50], [-9, -9, -2, -2]])
    crops, filled = crop_to_fit(images, [boxes], 16)
    assert crops.isfinite().all() and (filled > 0).all() and (filled <= 1).all()


def test_a_crop_has_at_least_one_pixel_and_no_more() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    boxes = torch.tensor([[1.0, 2, 3, 3], [1, 2, 1, 2], [2, 0, 2, 4]])
    crops, filled = crop_to_fit(images, [boxes], 4)
    assert filled.tolist() == [[0.5, 1], [1, 1], [1, 0.25]]
    # rows of one row, columns of one column
    assert crops[0, 0, :2].unique(dim=0).shape[0] == 1
    assert crops[1].unique().tolist() == [9.0]
    assert crops[2, 0, :, 0].tolist() == [2.0, 6, 10, 14]


def test_statistics_of_the_norms_are_left_alone(joint: Callable[..., Any]) -> None:
    model = joint().train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    with frozen_statistics(model):
        assert not any(
            m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)
        )
        model.extract_feat(torch.rand(2, 3, 64, 64))
    assert all(v.equal(before[k]) for k, v in model.named_buffers())
    assert model.backbone.training
    with untouched(model):
        feats = model.extract_feat(torch.rand(2, 3, 64, 64))
    assert not any(f.requires_grad for f in feats)


def test_smaller_crops_are_more_for_the_same_cost(joint: Callable[..., Any]) -> None:
    head: GlobalHead = joint().global_head
    seen: dict[int, int] = {}

    def see(boxes: list[Tensor], side: int) -> tuple[list[Tensor], Tensor]:
        number = sum(map(len, boxes))
        seen[side] = number
        feats = [torch.rand(number, c, 2, 2) for c in (64, 128, 256)]
        return feats, torch.ones(number, 2)

    regions = [torch.rand(100, 4) for _ in range(4)]
    student = StudentBatch((), [make_sample()] * 4, crop_features=see)
    embeds, which = head._embed_crops(regions, student)
    assert seen == {32: 8, 64: 2}  # half of 4 images each
    assert len(embeds) == 10 and which.max() < 400
    assert len(set(which[:8].tolist())) == 8
