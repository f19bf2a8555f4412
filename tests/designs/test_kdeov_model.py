"""KDEOVModel: the calls of the KDEOV documents, and what they promise."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor

from kdeov_mm import KDEOV, KDEOVModel, create_clip_model
from kdeov_mm.clip import CLIPSource
from kdeov_mm.designs.kdeov_model import BACKBONES, FUSIONS
from kdeov_mm.models import TextEmbeds

from ..conftest import ROOT, enliven
from ..inference.test_api import assert_same_boxes, rows, scene

NAMES = ["red ring", "blue star", "striped purple bowtie"]
SENTENCES = ["a photo of a red ring", "a blue star.", "two bowties"]
DIMS = 128  # of the built-in CLIP
SIZES = [(96, 96), (70, 109), (33, 64), (5, 7)]  # height, width
CLOSE = dict(atol=1e-5, rtol=1e-4)


def lively(**options: Any) -> KDEOVModel:
    """A model that, untrained, finds boxes, and whose fusion is not the identity."""
    torch.manual_seed(0)
    model = KDEOVModel("shapes", **options)
    enliven(model.detector)
    if model.detector.fusion is not None:
        for name, weight in model.detector.fusion.named_parameters():
            if name.endswith("weight") and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> KDEOVModel:
    """Not to be changed by a test."""
    return lively()


def pixels(number: int, height: int, width: int) -> np.ndarray:
    """(B, H, W, 3) uint8 RGB."""
    return np.stack([scene(height, width, seed) for seed in range(number)])


def as_clip_takes_them(rgb: np.ndarray, name: str = "shapes") -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W), normalised by a CLIP's mean and std."""
    statistics = CLIPSource.named(name).image_statistics()
    mean, std = torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])
    return ((torch.from_numpy(rgb) / 255 - mean) / std).permute(0, 3, 1, 2)


def images(number: int = 3, height: int = 96, width: int = 96) -> Tensor:
    return as_clip_takes_them(pixels(number, height, width))


def assert_unit(vectors: Tensor, *shape: int, dim: int = 1) -> None:
    assert vectors.shape == shape
    norms = vectors.norm(dim=dim)
    torch.testing.assert_close(norms, torch.ones_like(norms))


# ------------------------------------------------------------ calls of the documents


@pytest.mark.parametrize(
    "backbone, fusion",
    [
        ("yolov8n", "film"),
        ("yolov8n", None),
        ("yolov8s", "film"),
        ("yolov5s", "cross_attention"),
    ],
)
def test_the_calls_of_the_documents(backbone: str, fusion: str | None) -> None:
    model = KDEOVModel(
        clip_model_name="shapes",
        backbone_type=backbone,
        fusion_type=fusion,
        device="cpu",
    ).to("cpu")
    batch = torch.randn(4, 3, 64, 96)
    # whole images
    assert_unit(model.encode_image(batch), 4, DIMS)
    assert_unit(model.encode_text(SENTENCES), 3, DIMS)
    assert model.zero_shot_classify(batch, NAMES).shape == (4, 3)
    # locations and boxes
    assert_unit(model.get_spatial_embeddings(batch), 4, DIMS, 8, 12)
    found = model.open_vocabulary_detect(
        batch, class_names=NAMES, score_threshold=0.2, nms_threshold=0.5
    )
    assert len(found) == 4
    assert {*found[0]} == {"boxes", "scores", "labels", "names"}
    # all at once
    outputs = model(batch, SENTENCES)
    width = int(4 * BACKBONES[backbone][1])  # in quarters
    maps = [
        (4, c * width, 64 // s, 96 // s) for c, s in zip((64, 128, 256), (8, 16, 32))
    ]
    assert [m.shape for m in outputs["visual_map"]] == maps
    if fusion is None:
        assert outputs["fused_map"] is None
    else:
        assert [m.shape for m in outputs["fused_map"]] == maps
    logits, sides = outputs["predictions"]
    assert [m.shape[:2] for m in logits] == [(4, 3)] * 3
    assert [m.shape[:2] for m in sides] == [(4, 4)] * 3
    assert_unit(outputs["text_features"], 3, DIMS)
    torch.testing.assert_close(outputs["visual_features"], model.encode_image(batch))


def test_logits_are_cosines_times_the_exponential_of_the_logit_scale(
    model: KDEOVModel,
) -> None:
    outputs = model(images(), SENTENCES)
    scale = model.detector.global_head.classifier.logit_scale
    assert scale.exp().item() == pytest.approx(1 / 0.07)
    cosines = outputs["visual_features"] @ outputs["text_features"].T
    torch.testing.assert_close(outputs["logits"], cosines * scale.exp())
    # classes have the templates of the text encoder
    text = model.detector.embed([(name,) for name in NAMES]).vectors
    wanted = model.encode_image(images()) @ text.T * scale.exp()
    torch.testing.assert_close(model.zero_shot_classify(images(), NAMES), wanted)


def test_without_text_there_is_what_needs_none(model: KDEOVModel) -> None:
    outputs = model(images())
    present = {key for key, value in outputs.items() if value is not None}
    assert present == {"visual_features", "visual_map"}


def test_the_shapes_of_vit_b_32() -> None:
    """Both models, with random weights: OpenAI's are downloaded."""
    model = KDEOVModel("ViT-B/32", "yolov8n", "film", pretrained=None)
    assert model.detector.text_encoder.source == CLIPSource(
        "ViT-B-32-quickgelu", "random"
    )
    batch = torch.randn(1, 3, 224, 224)
    tokens = model.tokenize(SENTENCES[:2])
    assert tokens.shape == (2, 77)
    assert_unit(model.encode_text(tokens), 2, 512)
    assert_unit(model.encode_image(batch), 1, 512)
    assert_unit(model.get_spatial_embeddings(batch, tokens), 1, 512, 28, 28)
    assert model(batch, tokens)["logits"].shape == (1, 2)
    # the other document's, with the same tower
    clip = create_clip_model(pretrained=None, backbone_pretrained=None)
    clip.student.text_encoder = model.detector.text_encoder
    one, other = clip(
        batch, torch.randint(0, 49408, (1, 77)), attention_mask=torch.ones(1, 77)
    )
    assert_unit(one, 1, 512)
    assert_unit(other, 1, 512)


def test_the_default_is_openais_clip_which_is_not_downloaded_before_its_use() -> None:
    model = KDEOVModel()
    assert model.detector.text_encoder.source == CLIPSource.named("ViT-B/32")
    preprocessor = model.detector.data_preprocessor
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]) * 255
    torch.testing.assert_close(preprocessor.mean.flatten(), mean)
    assert_unit(model.encode_image(torch.randn(1, 3, 64, 64)), 1, 512)


# ------------------------------------------------------------------------ the laws


@pytest.mark.parametrize("size", SIZES)
def test_an_image_alone_says_what_it_says_in_a_batch(
    model: KDEOVModel, size: tuple[int, int]
) -> None:
    batch = images(3, *size)
    together = model.encode_image(batch)
    spatial = model.get_spatial_embeddings(batch, class_names=NAMES)
    boxes = model.open_vocabulary_detect(batch, NAMES, 0.0, 1.0)
    for i, image in enumerate(batch[:, None]):
        torch.testing.assert_close(model.encode_image(image)[0], together[i], **CLOSE)
        alone = model.get_spatial_embeddings(image, class_names=NAMES)[0]
        torch.testing.assert_close(alone, spatial[i], **CLOSE)
        (found,) = model.open_vocabulary_detect(image, NAMES, 0.0, 1.0)
        assert_same_boxes(rows(found), rows(boxes[i]))


def test_the_same_call_gives_the_same_bits(model: KDEOVModel) -> None:
    assert not model.training
    batch = images(2, 70, 109)
    assert torch.equal(model.encode_image(batch), model.encode_image(batch))
    one, other = (model.open_vocabulary_detect(batch, NAMES, 0.01) for _ in range(2))
    assert all(torch.equal(rows(a), rows(b)) for a, b in zip(one, other))


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_padded_and_the_padding_is_no_part_of_an_image(
    model: KDEOVModel, size: tuple[int, int]
) -> None:
    """The same as KDEOV says of the pixels, at the same size."""
    height, width = size
    rgb = pixels(2, height, width)
    other = KDEOV(model.detector)
    other.size = max(size)
    batch = as_clip_takes_them(rgb)
    torch.testing.assert_close(
        model.encode_image(batch), other.encode_image(rgb), **CLOSE
    )
    found = model.open_vocabulary_detect(batch, NAMES, 0.01)
    wanted = other.open_vocabulary_detect(rgb, NAMES, 0.01)
    for one, its in zip(found, wanted):
        assert_same_boxes(rows(one), rows(its))
        assert one["names"] == [NAMES[i] for i in one["labels"]]
        limit = torch.tensor([width, height] * 2)
        assert (one["boxes"] >= 0).all() and (one["boxes"] <= limit).all()
    levels = model.get_spatial_pyramid(batch)
    grids = [(-(-height // s), -(-width // s)) for s in (8, 16, 32)]
    assert [level.shape[2:] for level in levels] == grids


def test_logits_follow_the_order_of_the_names(model: KDEOVModel) -> None:
    order = [2, 0, 1]
    logits = model.zero_shot_classify(images(), NAMES)
    permuted = model.zero_shot_classify(images(), [NAMES[i] for i in order])
    torch.testing.assert_close(permuted, logits[:, order])
    # FiLM by the mean of the words does not know their order either
    found = model.open_vocabulary_detect(images(), NAMES, 0.01)
    others = model.open_vocabulary_detect(images(), [NAMES[i] for i in order], 0.01)
    for one, other in zip(found, others):
        other["labels"] = torch.tensor(order)[other["labels"]]
        assert_same_boxes(rows(one), rows(other))


def test_tokens_strings_and_vectors_are_one_text(model: KDEOVModel) -> None:
    vectors = model.encode_text(SENTENCES)
    tokens = model.tokenize(SENTENCES)
    assert not tokens.is_floating_point()
    assert torch.equal(model.encode_text(tokens), vectors)
    assert_unit(model.encode_text(SENTENCES[0]), 1, DIMS)
    wanted = model(images(), SENTENCES)
    for text in (tokens, vectors, tuple(SENTENCES)):
        outputs = model(images(), text)
        assert torch.equal(outputs["logits"], wanted["logits"])
        for one, other in zip(outputs["fused_map"], wanted["fused_map"]):
            assert torch.equal(one, other)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_words_change_locations_and_never_the_embedding_of_an_image(
    fusion: str | None,
) -> None:
    model = lively(fusion_type=fusion)
    plain = model.get_spatial_embeddings(images())
    asked = model.get_spatial_embeddings(images(), SENTENCES)
    named = model.get_spatial_embeddings(images(), class_names=NAMES)
    others = model.get_spatial_embeddings(images(), class_names=["green cross"])
    changed = [(m - plain).abs().max() > 1e-3 for m in (asked, named, others)]
    assert changed == [fusion is not None] * 3
    features = [model(images(), t)["visual_features"] for t in (None, *SENTENCES)]
    assert all(torch.equal(f, features[0]) for f in features)


def test_locations_are_scored_as_they_are_embedded(model: KDEOVModel) -> None:
    text = model.detector.embed([(name,) for name in NAMES]).vectors
    levels = model.get_spatial_pyramid(images(), text)
    logits, _ = model(images(), text)["predictions"]
    classifier = model.detector.bbox_head.head_module.classifier
    for i, (level, wanted) in enumerate(zip(levels, logits)):
        own = torch.einsum("bdhw,kd->bkhw", level, text) * classifier.scale()
        torch.testing.assert_close(own + classifier.bias[i], wanted, atol=1e-3, rtol=0)


def test_gradients_reach_the_backbone_and_not_the_clip() -> None:
    model = lively().train()
    outputs = model(images(), SENTENCES)
    loss = outputs["logits"].diagonal().sum() + outputs["predictions"][0][0].mean()
    loss.backward()
    for part in ("backbone", "neck", "global_head", "fusion"):
        weights = [*getattr(model.detector, part).parameters()]
        assert any(w.grad is not None and w.grad.any() for w in weights), part
    tower = model.detector.text_encoder._load()
    assert all(not w.requires_grad and w.grad is None for w in tower.parameters())
    model.teacher_features(images())
    tower = model.detector.teacher._load(torch.device("cpu"))
    assert all(not w.requires_grad and w.grad is None for w in tower.parameters())
    # neither is part of the model
    names = {name.split(".")[1] for name in model.state_dict()}
    parts = {"backbone", "neck", "fusion", "bbox_head", "global_head"}
    assert names == parts
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == parts


def test_questions_leave_a_model_in_training_as_it_is(model: KDEOVModel) -> None:
    training = copy.deepcopy(model).train()
    before = copy.deepcopy(training.state_dict())
    logits = training.zero_shot_classify(images(), NAMES)
    found = training.open_vocabulary_detect(images(), NAMES, 0.01)
    assert training.training and training.detector.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in training.state_dict().items())
    torch.testing.assert_close(logits, model.zero_shot_classify(images(), NAMES))
    for one, other in zip(found, model.open_vocabulary_detect(images(), NAMES, 0.01)):
        assert_same_boxes(rows(one), rows(other))


def test_boxes_follow_both_thresholds(model: KDEOVModel) -> None:
    def find(score: float, overlap: float) -> dict[str, Any]:
        (found,) = model.open_vocabulary_detect(images(1), NAMES, score, overlap)
        return found

    numbers = [len(find(0.3, overlap)["boxes"]) for overlap in (0.1, 0.3, 0.6)]
    assert 0 < numbers[0] < numbers[1] < numbers[2]
    scores = find(0.0, 0.3)["scores"]
    for threshold in scores.quantile(torch.tensor([0.2, 0.5, 0.9])).tolist():
        found = find(threshold, 0.3)
        torch.testing.assert_close(found["scores"], scores[scores >= threshold])
    with pytest.raises(ValueError, match=r"score_threshold lies in \[0, 1\], got 20"):
        model.open_vocabulary_detect(images(1), NAMES, 20)


# -------------------------------------------------------------- the rest of the package


def test_weights_round_trip(model: KDEOVModel, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = KDEOVModel("shapes")
    assert not torch.equal(other.encode_image(images()), model.encode_image(images()))
    other.load_state_dict(torch.load(tmp_path / "model.pth"))
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin.encode_image(images()), model.encode_image(images()))
        one, its = (m.open_vocabulary_detect(images(), NAMES, 0.01)
                    for m in (twin, model))  # fmt: skip
        assert all(torch.equal(rows(a), rows(b)) for a, b in zip(one, its))
        assert twin.kdeov.model is twin.detector is not model.detector


def test_a_checkpoint_of_the_detector_serves_all_of_the_package(
    model: KDEOVModel, tmp_path: Path
) -> None:
    detector, path = model.detector, tmp_path / "student.pth"
    meta = dict(cfg=detector.cfg.pretty_text)
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), path)
    student, rgb = KDEOV.from_checkpoint(path), pixels(2, 96, 80)
    assert torch.equal(student.encode_image(rgb), model.kdeov.encode_image(rgb))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_detector_folds(fusion: str | None) -> None:
    model = lively(fusion_type=fusion)
    folded = KDEOV(model.detector.fold(NAMES))
    other = KDEOV(model.detector)
    folded.size = other.size = 96
    rgb = pixels(2, 96, 96)
    wanted = model.open_vocabulary_detect(as_clip_takes_them(rgb), NAMES, 0.01)
    for student in (folded, other):
        for one, its in zip(student.open_vocabulary_detect(rgb, NAMES, 0.01), wanted):
            assert_same_boxes(rows(one), rows(its))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_model_made_in_code_is_the_one_of_the_configs(
    backbone: str, fusion: str | None
) -> None:
    """Weights of a training by config fit, and say the same."""
    model = KDEOVModel("shapes", backbone, fusion)
    cfg = Config.fromfile(
        ROOT / "configs/_base_/models/kdeov_yolov8_n.py", lazy_import=False
    )
    kind, width = BACKBONES[backbone]
    levels = dict(in_channels=cfg.channels, widen_factor=width)
    projection = dict(type="GlobalProjection", embed_dims=DIMS, **levels)
    cfg.merge_from_dict(
        {
            "model.backbone": dict(type=kind, widen_factor=width),
            "model.neck.widen_factor": width,
            "model.bbox_head.head_module.widen_factor": width,
            "model.global_head": dict(
                type="GlobalHead", projection=projection, contrast=dict(type="InfoNCE")
            ),
            "model.fusion": fusion
            and dict(type=FUSIONS[fusion], text_dims=DIMS, **levels),
            "model.test_cfg.max_per_img": 300,
        }
    )
    group_norm = dict(type="GN", num_groups=32)
    cfg.model.bbox_head.head_module.projection_norm = group_norm
    other = MODELS.build(cfg.model).eval()
    other.load_state_dict(model.detector.state_dict())
    samples = model.prepare(images())[1]
    embeds = TextEmbeds(model.encode_text(SENTENCES))
    with torch.no_grad():
        wanted = other._forward(images(), samples, embeds)
        outputs = model(images(), embeds.vectors)
    assert torch.equal(outputs["visual_features"], wanted["visual_features"])
    for one, its in zip(outputs["predictions"], wanted["predictions"]):
        assert all(torch.equal(a, b) for a, b in zip(one, its))
    head, its = model.detector.bbox_head, other.bbox_head
    for part in ("loss_bbox", "loss_dfl", "loss_cls", "bbox_coder", "prior_generator"):
        assert type(getattr(head, part)) is type(getattr(its, part)), part
        assert str(vars(getattr(head, part))) == str(vars(getattr(its, part))), part
    assert head.test_cfg == its.test_cfg


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "what, got",
    [
        (torch.zeros(3, 64, 64), r"torch.float32 of \(3, 64, 64\)"),
        (torch.zeros(1, 2, 3, 64, 64), r"torch.float32 of \(1, 2, 3, 64, 64\)"),
        (torch.zeros(2, 64, 64, 3), r"torch.float32 of \(2, 64, 64, 3\)"),
        (torch.zeros(2, 1, 64, 64), r"torch.float32 of \(2, 1, 64, 64\)"),
        (torch.zeros(2, 3, 0, 64), r"torch.float32 of \(2, 3, 0, 64\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), r"torch.uint8 of \(2, 3, 64"),
        (np.zeros((2, 3, 64, 64)), "ndarray"),
        ("image.jpg", "str"),
    ],
)
def test_what_are_no_normalised_images_is_refused(
    model: KDEOVModel, what: Any, got: str
) -> None:
    match = rf"expected a tensor \(B, 3, H, W\) of floats.*; got {got}.*KDEOV"
    for ask in (model, model.encode_image, model.get_spatial_embeddings):
        with pytest.raises(ValueError, match=match):
            ask(what)
    for question in (model.zero_shot_classify, model.open_vocabulary_detect):
        with pytest.raises(ValueError, match=match):
            question(what, NAMES)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(backbone_type="yolov9"), "backbone_type is one of.*'yolov8n'.*'yolov9'"),
        (dict(fusion_type="mlp"), "fusion_type is one of.*'film'.*None.*'mlp'"),
        (dict(clip_model_name="ViT-B"), "OpenAI's.*'ViT-B/32'.*'shapes'.*'ViT-B'"),
    ],
)
def test_a_name_that_nobody_knows_is_refused(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KDEOVModel(**options)


@pytest.mark.parametrize("names", ["red ring", [], [""]])
def test_what_are_no_class_names_is_refused(model: KDEOVModel, names: Any) -> None:
    for ask in (
        model.zero_shot_classify,
        model.open_vocabulary_detect,
        lambda batch, its: model.get_spatial_embeddings(batch, class_names=its),
    ):
        with pytest.raises(ValueError, match="expected|word"):
            ask(images(1), names)


def test_text_and_class_names_are_one_choice(model: KDEOVModel) -> None:
    with pytest.raises(ValueError, match="`text` or `class_names`, not both"):
        model.get_spatial_embeddings(images(1), SENTENCES, class_names=NAMES)


def test_it_says_that_it_is_not_trained_and_little_else() -> None:
    records: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger, listener = MMLogger.get_current_instance(), Listener()
    listener.setLevel(logging.INFO)
    logger.addHandler(listener)
    KDEOVModel("shapes")
    logger.removeHandler(listener)
    assert len(records) == 1 and "NOT TRAINED" in records[0]
