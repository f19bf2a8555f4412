"""KDEOV: any image, any words, one object; what a checkpoint says of itself."""

import copy
import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image
from torch import Tensor

from kdeov_mm import KDEOV
from kdeov_mm.checkpoints import read_config
from kdeov_mm.models import KDEOVDetector, TextEmbeds
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary

from ..conftest import EMBED_DIMS, ROOT, WORDS, enliven, make_sample
from ..models.test_detector import FUSIONS
from ..models.test_global_head import make_cfg

CLASSES = as_vocabulary(WORDS).words
JOINT = "kdeov_n_shapes_joint.py"
SIDE = 160  # of the input, in the joint config
SIZES = [(SIDE, SIDE), (43, 61), (300, 200), (20, 190), (1, 1), (7, 1000), (3, 6000)]
CLOSE = dict(atol=1e-5, rtol=1e-5)


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: sixteen patches of random colours, and some noise."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize((width, height), Image.Resampling.NEAREST))
    noise = rng.integers(-30, 30, size=smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def as_tensor(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


def write_joint(
    folder: Path, load_config: Callable[..., Config], seed: int = 0, **changes: Any
) -> Path:
    """A checkpoint of the joint config as mmengine writes it.

    The student is untrained, but finds boxes, and tells images apart. ``changes`` are
    those of its config.
    """
    init_default_scope("mmdet")
    cfg = load_config(JOINT)
    cfg.model.test_cfg.max_per_img = 10**4
    cfg.merge_from_dict(changes)
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    tell_apart(enliven(model))
    path = folder / "joint.pth"
    about = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=WORDS))
    torch.save(dict(state_dict=model.state_dict(), meta=about), path)
    return path


@torch.no_grad()
def tell_apart(model: KDEOVDetector) -> None:
    """Give norms the statistics of images; take from embeddings what all share."""
    images = torch.zeros(16, 3, 160, 160)
    for seed, image in enumerate(images):
        width = 160 - 4 * seed
        image[:, :, :width] = as_tensor(scene(160, width, seed))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    feats = model.train().extract_feat(images / 255)
    model.bbox_head.head_module.embed(feats)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.bbox_head.head_module.classifier.logit_scale.fill_(
        1.0
    )  # few scores are close to 1
    projection = model.eval().global_head.projection
    embeds = projection._attend(model.extract_feat(images / 255), torch.ones(16, 2))
    for _, mlp in projection.levels:
        mlp[-1].bias[: embeds.shape[1]] -= embeds.mean(0)


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> Path:
    return write_joint(tmp_path_factory.mktemp("joint"), load_config)


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> KDEOV:
    return KDEOV.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def blind(load_config: Callable[..., Config]) -> KDEOV:
    """A detector without a global head."""
    return KDEOV.from_config(load_config("kdeov_n_shapes.py"))


@pytest.fixture(scope="module")
def tower(load_config: Callable[..., Config]) -> KDEOV:
    """An ImageTextModel."""
    name = ROOT / "configs/image_text/yolov8_n_shapes.py"
    return KDEOV.from_config(load_config(name))


@pytest.fixture
def warned() -> Iterator[Callable[[], str]]:
    """What mm's logger was warned of since the last time."""
    stream, logger = io.StringIO(), MMLogger.get_current_instance()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)

    def read() -> str:
        said = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return said

    logger.addHandler(handler)
    yield read
    logger.removeHandler(handler)


def save(rgb: np.ndarray, path: Path) -> Path:
    Image.fromarray(rgb).save(path)
    return path


FORMS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "path": lambda rgb, folder: save(rgb, folder / "a.png"),
    "string": lambda rgb, folder: str(save(rgb, folder / "a.png")),
    "pil": lambda rgb, folder: Image.fromarray(rgb),
    "opaque": lambda rgb, folder: Image.fromarray(rgb).convert("RGBA"),
    "array": lambda rgb, folder: rgb,
    "view": lambda rgb, folder: np.ascontiguousarray(rgb[:, ::-1])[:, ::-1],
    "bytes": lambda rgb, folder: as_tensor(rgb),
    "floats": lambda rgb, folder: as_tensor(rgb) / 255,
    "doubles": lambda rgb, folder: as_tensor(rgb).double() / 255,
    "halves": lambda rgb, folder: (as_tensor(rgb) / 255).half(),
    "learnt": lambda rgb, folder: (as_tensor(rgb) / 255).requires_grad_(),
}


def rows(found: dict[str, Any]) -> Tensor:
    """(n, 6): label, box, score, as they come."""
    columns = found["labels"][:, None], found["boxes"], found["scores"][:, None]
    return torch.cat([c.float() for c in columns], 1)


def assert_same_boxes(found: Tensor, wanted: Tensor) -> None:
    """Rows of both agree, in any order: those of nearly the same score may swap."""
    assert found.shape == wanted.shape and len(wanted)
    apart = torch.cdist(found, wanted, p=torch.inf)
    assert max(apart.amin(0).max(), apart.amin(1).max()) < 1e-2


# --------------------------------------------------------------------- images


@pytest.mark.parametrize("form", FORMS)
def test_an_image_says_the_same_in_every_form(
    student: KDEOV, tmp_path: Path, form: str
) -> None:
    rgb = scene(43, 61)
    image = FORMS[form](rgb, tmp_path)
    assert torch.equal(student.encode_image(image), student.encode_image(rgb))
    (found,) = student.open_vocabulary_detect(image, WORDS)
    (wanted,) = student.open_vocabulary_detect(rgb, WORDS)
    assert len(wanted["boxes"]) > 10
    assert torch.equal(rows(found), rows(wanted))


def test_a_gray_image_has_three_equal_channels(student: KDEOV) -> None:
    gray = scene(50, 40)[..., 0]
    wanted = student.encode_image(np.stack([gray] * 3, -1))
    for image in (gray, Image.fromarray(gray)):
        assert torch.equal(student.encode_image(image), wanted)


def test_an_image_is_left_as_it_is(student: KDEOV) -> None:
    rgb, tensor = scene(50, 40), as_tensor(scene(50, 40)) / 255
    before = rgb.copy(), tensor.clone()
    student.encode_image([rgb, tensor])
    student.open_vocabulary_detect([rgb, tensor], WORDS)
    assert np.array_equal(rgb, before[0]) and torch.equal(tensor, before[1])


def test_embeddings_are_unit_vectors_that_tell_images_apart(student: KDEOV) -> None:
    embeds = student.encode_image([scene(60, 80, seed) for seed in range(5)])
    assert embeds.shape == (5, EMBED_DIMS) and not embeds.requires_grad
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(5))
    assert (embeds @ embeds.T - 2 * torch.eye(5)).max() < 0.95


@pytest.mark.parametrize("size", [(96, 160), (160, 70), (64, 40), (10, 96)])
def test_padding_is_no_part_of_an_image(student: KDEOV, size: tuple[int, int]) -> None:
    image = scene(*size)
    padded = [-(-n // 32) * 32 for n in size]
    pixels = torch.zeros(1, 3, *padded)
    pixels[..., : size[0], : size[1]] = as_tensor(image) / 255
    filled = torch.tensor([[n / m for n, m in zip(size, padded)]])
    with torch.no_grad():
        feats = student.model.extract_feat(pixels)
        wanted = student.model.global_head.embed(feats, filled)
    torch.testing.assert_close(student.encode_image(image), wanted, **CLOSE)


@pytest.mark.parametrize("size", [(3, 6000), (6000, 3), (1, 1)])
def test_a_thread_of_an_image_is_an_image(
    student: KDEOV, size: tuple[int, int]
) -> None:
    """At the model's input it would be less than a pixel thin."""
    embeds = student.encode_image([scene(*size), np.full((*size, 3), 255, np.uint8)])
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
    assert embeds[0] @ embeds[1] < 0.999


def test_a_list_of_any_kinds_and_sizes_says_what_each_says_alone(
    student: KDEOV, tmp_path: Path
) -> None:
    forms = [*FORMS]
    images = []
    for i, size in enumerate(SIZES):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        images.append(FORMS[forms[i % len(forms)]](scene(*size, i), folder))
    together = student.encode_image(images)
    boxes = student.open_vocabulary_detect(images, WORDS[:2], 0.0, 1.0)
    assert len(together) == len(boxes) == len(images)
    for image, embed, found in zip(images, together, boxes):
        (alone,) = student.encode_image(image)
        torch.testing.assert_close(embed, alone, **CLOSE)
        (wanted,) = student.open_vocabulary_detect([image], WORDS[:2], 0.0, 1.0)
        torch.testing.assert_close(found["scores"], wanted["scores"], **CLOSE)
        assert_same_boxes(rows(found), rows(wanted))


@pytest.mark.parametrize("size", [(48, 64), (200, 190)])
def test_a_batch_says_what_its_images_say(
    student: KDEOV, size: tuple[int, int]
) -> None:
    images = [scene(*size, seed) for seed in range(3)]
    tensor = torch.stack([as_tensor(p) for p in images])
    wanted = torch.cat([student.encode_image(p) for p in images])
    for batch in (np.stack(images), tensor, tensor / 255, tuple(images)):
        torch.testing.assert_close(student.encode_image(batch), wanted, **CLOSE)
        assert len(student.open_vocabulary_detect(batch, WORDS)) == 3


def test_the_number_of_images_at_once_changes_nothing(student: KDEOV) -> None:
    images = [scene(*size, seed) for seed, size in enumerate(SIZES)]
    few = KDEOV(student.model, batch_size=2)
    one, other = few.encode_image(images), student.encode_image(images)
    torch.testing.assert_close(one, other, **CLOSE)
    assert len(few.open_vocabulary_detect(images, WORDS)) == len(images)


SHOWN = {(10, 7): 64, (70, 40): 64, (127, 20): 96, (20, 129): SIDE, (300, 400): SIDE}


@pytest.mark.parametrize("size", SHOWN)
def test_images_are_shown_at_the_nearest_size_that_the_student_knows(
    student: KDEOV, size: tuple[int, int]
) -> None:
    """It has learnt crops of 64, 96 and 160 px, and whole images."""
    assert student.sizes == (64, 96, SIDE)
    image, side = scene(*size), SHOWN[size]
    shown = mmcv.imrescale(image, (side, side))
    assert max(shown.shape) == side
    wanted = student.encode_image(shown)
    torch.testing.assert_close(student.encode_image(image), wanted, **CLOSE)


def test_twice_the_pixels_are_the_same_image(student: KDEOV) -> None:
    """Shrunk by two, the four copies of a pixel are one again."""
    image = scene(120, SIDE)
    twice = image.repeat(2, 0).repeat(2, 1)
    both = student.encode_image([image, twice])
    torch.testing.assert_close(both[0], both[1], **CLOSE)


def test_no_images_have_no_embeddings_and_no_boxes(student: KDEOV) -> None:
    assert student.encode_image([]).shape == (0, EMBED_DIMS)
    assert student.zero_shot_classify([], WORDS).shape == (0, len(WORDS))
    assert student.open_vocabulary_detect([], WORDS) == []


def by_pipeline(student: KDEOV, path: Path) -> Tensor:
    """The embedding of a file that went through the config's test pipeline."""
    pipeline = Compose(student.model.cfg.test_dataloader.dataset.pipeline)
    data = pipeline(dict(img_path=str(path), img_id=0, words=CLASSES))
    batch = student.model.data_preprocessor(pseudo_collate([data]))
    with torch.no_grad():
        return student.model(**batch, mode="tensor")["visual_features"]


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 0, 255), (200, 120, 10)])
def test_colours_are_those_of_the_test_pipeline(
    student: KDEOV, tmp_path: Path, color: tuple[int, int, int]
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (SIDE, SIDE), color).save(path)
    wanted = by_pipeline(student, path)
    torch.testing.assert_close(student.encode_image(path), wanted, **CLOSE)
    swapped = Image.new("RGB", (SIDE, SIDE), color[::-1])
    assert (student.encode_image(swapped) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(SIDE, 100), (90, 400), (SIDE, 5), (600, 599)])
def test_large_images_are_those_of_the_test_pipeline(
    student: KDEOV, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = save(scene(*size), tmp_path / "a.png")
    wanted = by_pipeline(student, path)
    torch.testing.assert_close(student.encode_image(path), wanted, **CLOSE)


NO_IMAGES: tuple[tuple[Any, str], ...] = (
    (torch.randn(3, 8, 8), r"floats in \[0, 1\].*got torch.float32 from -"),
    (torch.full((3, 8, 8), 200.0), r"floats in \[0, 1\].*to 200"),
    (torch.full((3, 8, 8), float("nan")), r"floats in \[0, 1\].*nan"),
    (torch.zeros(3, 8, 8, dtype=torch.int64), "got torch.int64"),
    (torch.zeros(8, 8, 3), r"\(3, H, W\).*got \(8, 8, 3\)"),
    (torch.zeros(2, 8, 8, 3), r"\(3, H, W\).*got \(8, 8, 3\)"),
    (torch.zeros(8, 8), r"\(3, H, W\).*got \(8, 8\)"),
    (torch.zeros(3, 0, 8), r"\(3, H, W\).*got \(3, 0, 8\)"),
    (np.zeros((8, 8, 3), np.int64), "uint8, RGB.*of int64"),
    (np.zeros((8, 8, 3)), "uint8, RGB.*of float64"),
    (np.zeros((8, 8, 4), np.uint8), r"\(H, W, 3\).*got \(8, 8, 4\)"),
    (np.zeros((3, 8, 10), np.uint8), r"\(H, W, 3\).*got \(3, 8, 10\)"),
    (np.zeros((2, 3, 8, 10), np.uint8), r"\(H, W, 3\).*got \(3, 8, 10\)"),
    (np.zeros(8, np.uint8), r"\(H, W, 3\).*got \(8,\)"),
    (np.zeros((0, 8, 3), np.uint8), r"\(H, W, 3\).*got \(0, 8, 3\)"),
    ([7], "an image is .*got a int"),
    ([[scene(8, 8)]], "an image is .*got a list"),
)


@pytest.mark.parametrize("which", range(len(NO_IMAGES)))
def test_what_is_no_image_is_refused(student: KDEOV, which: int) -> None:
    image, reason = NO_IMAGES[which]
    for ask in (
        student.encode_image,
        partial(student.open_vocabulary_detect, names=WORDS),
    ):
        with pytest.raises(ValueError, match=reason):
            ask(image)


def test_a_file_that_is_no_image_is_named(student: KDEOV, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("this is no image")
    for path in (text, tmp_path / "missing.png", tmp_path):
        with pytest.raises(OSError, match=re.escape(str(path))):
            student.encode_image([scene(8, 8), path])


# ------------------------------------------------------------------------ words


def test_sentences_are_embedded_as_they_are(student: KDEOV) -> None:
    sentences = ["a red ball on a table", "Two dogs.", "a red ball on a table"]
    wanted = student.model.text_encoder.embed_prompts(sentences)
    embeds = student.encode_text(sentences)
    assert embeds.shape == (3, EMBED_DIMS) and torch.equal(embeds, wanted)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))
    tokens = student.model.text_encoder.source.tokenizer()(sentences)
    assert torch.equal(student.encode_text(tokens), embeds)
    assert torch.equal(student.encode_text(tuple(sentences)), embeds)
    one = student.encode_text(sentences[1])
    assert one.shape == (1, EMBED_DIMS)
    torch.testing.assert_close(one[0], embeds[1], **CLOSE)


@pytest.mark.parametrize("texts", [[1, 2], torch.zeros(2, 5, dtype=torch.long)])
def test_what_is_no_sentence_is_refused(student: KDEOV, texts: Any) -> None:
    with pytest.raises(ValueError, match="expected .*(sentences|tokens)"):
        student.encode_text(texts)


def test_logits_are_the_temperature_times_the_cosine(student: KDEOV) -> None:
    images = [scene(60, 60, seed) for seed in range(3)]
    logits = student.zero_shot_classify(images, WORDS)
    cosines = F.cosine_similarity(
        student.encode_image(images)[:, None],
        student.model.text_encoder(WORDS)[None],
        dim=-1,
    )
    assert logits.shape == (3, len(WORDS)) and logits.std() > 0
    scale = student.model.global_head.classifier.logit_scale.exp().detach()
    torch.testing.assert_close(logits, scale * cosines, **CLOSE)
    torch.testing.assert_close(logits.softmax(1).sum(1), torch.ones(3))


def test_the_order_of_names_is_the_order_of_the_logits(student: KDEOV) -> None:
    order, image = [4, 0, 2], scene(60, 60)
    logits = student.zero_shot_classify(image, WORDS)
    some = student.zero_shot_classify(image, [WORDS[i] for i in order])
    torch.testing.assert_close(some, logits[:, order], **CLOSE)


def test_synonyms_are_the_direction_of_their_mean(student: KDEOV) -> None:
    image, names = scene(60, 60), [WORDS[0], (WORDS[1], WORDS[2], WORDS[5])]
    logits = student.zero_shot_classify(image, names)
    text = student.model.text_encoder(names[1])
    mean = F.normalize(text.mean(0), dim=0)
    scale = student.model.global_head.classifier.logit_scale.exp().detach()
    wanted = scale * student.encode_image(image) @ mean
    assert logits.shape == (1, 2)
    torch.testing.assert_close(logits[:, 1], wanted, **CLOSE)


def test_synonyms_answer_as_in_the_model(
    student: KDEOV, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student.model, "synonyms", "max")
    image = scene(60, 60)
    each = student.zero_shot_classify(image, WORDS[:3])
    both = student.zero_shot_classify(image, [WORDS[0], WORDS[1:3]])
    wanted = torch.stack([each[:, 0], each[:, 1:].amax(1)], 1)
    torch.testing.assert_close(both, wanted, **CLOSE)


def test_a_vocabulary_is_a_list_of_names(student: KDEOV) -> None:
    image = scene(60, 60)
    words = ((WORDS[0],), (WORDS[1], "azure cube"))
    vocabulary = Vocabulary(WORDS[:2], words)
    wanted = student.zero_shot_classify(image, [WORDS[0], words[1]])
    made = vocabulary.embed(student.model.text_encoder)
    for names in (vocabulary, made):
        logits = student.zero_shot_classify(image, names)
        torch.testing.assert_close(logits, wanted, **CLOSE)
        (found,) = student.open_vocabulary_detect(image, names)
        assert {*found["names"]} == {*WORDS[:2]}


def test_the_vectors_of_a_vocabulary_are_used_and_those_of_another_clip_refused(
    student: KDEOV,
) -> None:
    names, encoder = (
        ("an unheard-of word", "another such word"),
        student.model.text_encoder,
    )
    vectors = dict(zip(names, encoder([WORDS[3], WORDS[0]])))
    own = Vocabulary(names, vectors=vectors, encoder=encoder.made_by)
    logits = student.zero_shot_classify(scene(60, 60), own)
    wanted = student.zero_shot_classify(scene(60, 60), [WORDS[3], WORDS[0]])
    torch.testing.assert_close(logits, wanted, **CLOSE)
    other = Vocabulary(names, vectors=vectors, encoder=dict(model="another"))
    with pytest.raises(ValueError, match="made by .*another"):
        student.zero_shot_classify(scene(60, 60), other)


@pytest.mark.parametrize("names", ["cat", "", [], (), None, [""], ["cat", " "], [()]])
def test_what_is_no_list_of_words_is_refused(student: KDEOV, names: Any) -> None:
    for ask in (student.zero_shot_classify, student.open_vocabulary_detect):
        with pytest.raises(ValueError, match="word"):
            ask(scene(20, 20), names)


# ------------------------------------------------------------------------ boxes


@pytest.mark.parametrize("size", SIZES)
def test_boxes_lie_in_the_image_the_best_first(
    student: KDEOV, size: tuple[int, int]
) -> None:
    (found,) = student.open_vocabulary_detect(scene(*size), WORDS, 0.3)
    boxes, scores, labels = (found[k] for k in ("boxes", "scores", "labels"))
    number = len(boxes)
    assert number > 3 and boxes.shape == (number, 4)
    assert scores.shape == labels.shape == (number,) and len(found["names"]) == number
    height, width = size
    assert (boxes >= 0).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
    assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
    assert (scores >= 0.3).all() and (scores <= 1).all()
    assert (scores.diff() <= 0).all()
    assert found["names"] == [WORDS[i] for i in labels]


@pytest.mark.parametrize("size", [(60, 80), (240, 320), (45, 33), (500, 100)])
def test_boxes_are_in_pixels_of_the_image(
    student: KDEOV, size: tuple[int, int]
) -> None:
    """An image, and itself resized to the model's input."""
    image = scene(*size)
    shown = mmcv.imrescale(image, (SIDE, SIDE))
    assert max(shown.shape) == SIDE
    (found,) = student.open_vocabulary_detect(image, WORDS, 0.4)
    (wanted,) = student.open_vocabulary_detect(shown, WORDS, 0.4)
    factors = [n / m for n, m in zip(size[::-1], shown.shape[1::-1])]
    boxes = wanted["boxes"] * torch.tensor(factors).repeat(2)
    assert len(boxes) > 10 and found["names"] == wanted["names"]
    torch.testing.assert_close(found["scores"], wanted["scores"], **CLOSE)
    torch.testing.assert_close(found["boxes"], boxes, atol=1e-3, rtol=1e-4)


def test_a_higher_threshold_leaves_the_beginning(student: KDEOV) -> None:
    image, numbers = scene(100, 140), []
    (every,) = student.open_vocabulary_detect(image, WORDS, 0.0)
    for threshold in (0.2, 0.5, 0.7, 0.99):
        (found,) = student.open_vocabulary_detect(image, WORDS, threshold)
        wanted = rows(every)[every["scores"] >= threshold]
        # the sigmoid of more numbers at once may round the last digit otherwise
        torch.testing.assert_close(rows(found), wanted, atol=1e-6, rtol=0)
        numbers.append(len(wanted))
    assert len(every["scores"]) >= numbers[0] > numbers[1] > numbers[2] > 0


def test_the_suppression_threshold_says_how_much_boxes_may_overlap(
    student: KDEOV,
) -> None:
    """Boxes at the border are cut after the suppression, and may overlap more."""
    image, numbers = scene(160, 160), []
    for threshold in (0.0, 0.3, 0.6, 1.0):
        (found,) = student.open_vocabulary_detect(
            image, WORDS[:1], 0.2, nms_threshold=threshold
        )
        boxes = found["boxes"]
        inner = boxes[(boxes > 0).all(1) & (boxes < 160).all(1)]
        assert len(inner) > 2
        assert bbox_overlaps(inner, inner).triu(1).max() <= threshold + 1e-6
        numbers.append(len(boxes))
    assert numbers == sorted({*numbers})


def test_across_words_no_two_boxes_of_an_object_are_left(student: KDEOV) -> None:
    image = scene(120, 160)
    ask = partial(student.open_vocabulary_detect, image, WORDS, 0.1, 0.5)
    (each,), (best,) = ask(), ask(agnostic=True)
    assert 0 < len(best["boxes"]) < len(each["boxes"])
    # boxes are compared before the image's border cuts them
    boxes = best["boxes"]
    whole = boxes[((boxes > 0) & (boxes < boxes.new_tensor([160, 120] * 2))).all(1)]
    assert len(whole) > 1
    assert bbox_overlaps(whole, whole).fill_diagonal_(0).max() <= 0.501
    # the best of all stays, and the next call is as before
    assert best["scores"][0] == each["scores"][0] and best["names"][0] in WORDS
    assert len(ask()[0]["boxes"]) == len(each["boxes"])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("Dog", "dog"), "'Dog' and 'dog'. Take"),
        (("Polar_Bear", "polar bear"), "'Polar Bear' and 'polar bear'"),
        (("bread &amp; butter", "bread & butter"), "'bread &amp; butter' and"),
        ((30 * "red " + "ring", 30 * "red " + "star"), "17 of 33 and 17 of 33 are cut"),
    ],
)
def test_words_that_are_the_same_to_the_clip_are_refused(
    student: KDEOV, pair: tuple[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match="two classes are the same") as refusal:
        student.open_vocabulary_detect(scene(40, 40), ["ring", *pair])
    assert message in str(refusal.value)
    # within a class they are synonyms
    student.query(["ring", pair])


def test_the_original_name_of_the_names_works(student: KDEOV) -> None:
    image = scene(100, 140)
    (found,) = student.open_vocabulary_detect(image, class_names=WORDS)
    (wanted,) = student.open_vocabulary_detect(image, WORDS)
    assert torch.equal(rows(found), rows(wanted))


def test_number_and_order_of_the_names_do_not_change_what_is_found(
    student: KDEOV,
) -> None:
    def found(names: Sequence[str]) -> Tensor:
        """(n, 6); the labels index WORDS."""
        (said,) = student.open_vocabulary_detect(scene(100, 140), names, 0.4)
        said["labels"] = torch.tensor([WORDS.index(name) for name in said["names"]])
        return rows(said)

    every = found(WORDS)
    assert len({*every[:, 0].tolist()}) > 2
    for names in (WORDS[::-1], WORDS[2:3], (WORDS[5], WORDS[0], WORDS[3])):
        kept = torch.isin(every[:, 0], torch.tensor([WORDS.index(n) for n in names]))
        assert_same_boxes(found(names), every[kept])


def test_a_class_with_synonyms_has_the_name_of_the_first(student: KDEOV) -> None:
    names = [WORDS[0], (WORDS[1], "azure cube")]
    (found,) = student.open_vocabulary_detect(scene(100, 140), names)
    assert {*found["names"]} == {*WORDS[:2]}


@pytest.mark.parametrize("size", [(60, 60), (160, 100), (90, 400), (43, 61)])
def test_boxes_are_those_of_the_test_pipeline(
    student: KDEOV, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = save(scene(*size), tmp_path / "a.png")
    cfg = student.model.bbox_head.test_cfg
    (found,) = student.open_vocabulary_detect(
        path, WORDS, cfg.score_thr, cfg.nms.iou_threshold
    )
    pipeline = Compose(student.model.cfg.test_dataloader.dataset.pipeline)
    data = pipeline(dict(img_path=str(path), img_id=0, words=CLASSES))
    with torch.no_grad():
        (wanted,) = student.model.test_step(pseudo_collate([data]))
    sample = wanted.pred_instances
    theirs = dict(labels=sample.labels, boxes=sample.bboxes, scores=sample.scores)
    torch.testing.assert_close(rows(found), rows(theirs), atol=1e-3, rtol=1e-5)
    assert found["names"] == sample.label_names


def test_thresholds_of_a_call_are_forgotten(student: KDEOV) -> None:
    before = copy.deepcopy(student.model.bbox_head.test_cfg)
    student.open_vocabulary_detect(scene(100, 140), WORDS, 0.9, 0.1)
    assert student.model.bbox_head.test_cfg == before


@pytest.mark.parametrize("key", ["score_threshold", "nms_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.5, 50, float("nan")])
def test_a_threshold_lies_between_0_and_1(
    student: KDEOV, key: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"{key} lies in \[0, 1\], got {value}"):
        student.open_vocabulary_detect(scene(20, 20), WORDS, **{key: value})


# ------------------------------------------------- what a model has no part for


def test_without_a_global_head_there_are_boxes_and_no_embeddings(blind: KDEOV) -> None:
    for ask in (blind.encode_image, partial(blind.zero_shot_classify, names=WORDS)):
        with pytest.raises(ValueError, match="no global head.*kdeov_n_shapes_joint.py"):
            ask(scene(40, 40))
    (found,) = blind.open_vocabulary_detect(scene(40, 40), WORDS, 0.0)
    assert len(found["boxes"])
    assert blind.encode_text("a thing").shape == (1, EMBED_DIMS)


def test_an_image_text_model_has_embeddings_and_no_boxes(tower: KDEOV) -> None:
    with pytest.raises(ValueError, match="ImageTextModel finds no boxes"):
        tower.open_vocabulary_detect(scene(40, 40), WORDS)
    assert tower.encode_image(scene(40, 40)).shape == (1, EMBED_DIMS)
    assert tower.zero_shot_classify(scene(40, 40), WORDS).shape == (1, len(WORDS))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_tensor_mode_says_six_things_of_a_batch(
    build_detector: Callable[..., KDEOVDetector], fusion: str, head: bool, asked: bool
) -> None:
    own = dict(global_head=make_cfg()) if head else {}
    model = build_detector(teacher=None, distill=None, **FUSIONS[fusion], **own).eval()
    samples = [make_sample(shape=(64, 96)) for _ in range(2)] if asked else None
    with torch.no_grad():
        said = model(torch.rand(2, 3, 64, 96), samples, mode="tensor")
    assert {*said} == {
        "visual_features",
        "text_features",
        "logits",
        "visual_map",
        "fused_map",
        "predictions",
    }
    words = len(WORDS)
    grids = [(64 // stride, 96 // stride) for stride in (8, 16, 32)]
    maps = [(2, c, *grid) for c, grid in zip((64, 128, 256), grids)]
    unit = {"visual_features": 2 if head else None, "text_features": words}
    for key, number in unit.items():
        if number is None or not asked and key == "text_features":
            assert said[key] is None
        else:
            assert said[key].shape == (number, EMBED_DIMS)
            torch.testing.assert_close(said[key].norm(dim=1), torch.ones(number))
    assert [m.shape for m in said["visual_map"]] == maps
    if asked and fusion != "none":
        assert [m.shape for m in said["fused_map"]] == maps
    else:
        assert said["fused_map"] is None
    if asked:
        logits, sides = said["predictions"]
        assert [m.shape for m in logits] == [(2, words, *grid) for grid in grids]
        assert [m.shape for m in sides] == [(2, 4, *grid) for grid in grids]
    else:
        assert said["predictions"] is None
    assert (said["logits"] is not None) == (asked and head)
    if asked and head:
        scale = model.global_head.classifier.logit_scale.exp()
        cosines = said["visual_features"] @ said["text_features"].T
        torch.testing.assert_close(said["logits"], scale * cosines)


def test_tensor_mode_scores_a_class_by_the_best_of_its_synonyms(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build_detector(
        teacher=None, distill=None, global_head=make_cfg(), synonyms="max"
    ).eval()
    text = (WORDS[0], WORDS[1:4], WORDS[4])
    samples = [make_sample(words=text) for _ in range(2)]
    with torch.no_grad():
        said = model(torch.rand(2, 3, 64, 64), samples, mode="tensor")
    assert said["text_features"].shape == (5, EMBED_DIMS)
    assert said["logits"].shape == (2, 3)
    text = TextEmbeds(said["text_features"])
    each = model.global_head.logits(said["visual_features"], text)
    torch.testing.assert_close(said["logits"][:, 1], each[:, 1:4].amax(1))
    assert all(level.shape[1] == 3 for level in said["predictions"][0])


# ------------------------------------------------------- configs and checkpoints


def test_a_checkpoint_alone_is_as_good_as_with_its_config(
    student: KDEOV, checkpoint: Path, load_config: Callable[..., Config]
) -> None:
    both = KDEOV.from_config(load_config(JOINT), checkpoint)
    image = scene(70, 50)
    assert torch.equal(both.encode_image(image), student.encode_image(image))
    assert not student.model.training and student.size == both.size == SIDE
    assert student.model.dataset_meta["classes"] == WORDS


def test_a_config_alone_gives_an_untrained_student_and_says_so(
    load_config: Callable[..., Config],
    tmp_path: Path,
    warned: Callable[[], str],
) -> None:
    cfg = load_config(JOINT)
    cfg.dump(tmp_path / "config.py")
    for config in (cfg, tmp_path / "config.py", str(tmp_path / "config.py")):
        student = KDEOV.from_config(config)
        assert "NOT TRAINED" in warned()
        assert student.encode_image(scene(40, 40)).shape == (1, EMBED_DIMS)


def test_a_config_whose_pipeline_resizes_nothing_is_refused(
    load_config: Callable[..., Config],
) -> None:
    cfg = load_config(JOINT)
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[:] = [step for step in pipeline if "scale" not in step]
    with pytest.raises(ValueError, match="test pipeline resizes nothing"):
        KDEOV.from_config(cfg)


def test_a_missing_checkpoint_says_how_to_get_one(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "nothing.pth"
    for ask in (KDEOV.from_checkpoint, partial(KDEOV.from_config, load_config(JOINT))):
        with pytest.raises(FileNotFoundError, match=r"nothing.pth.*tools/train.py"):
            ask(path)


@pytest.mark.parametrize(
    "content",
    [
        dict(state_dict={}),
        dict(state_dict={}, meta=None),
        dict(state_dict={}, meta=dict(cfg=None)),
        dict(state_dict={}, meta=dict(cfg="work_dir = 'a'")),
        dict(state_dict={}, meta=dict(cfg="no python at all")),
        [torch.zeros(2)],
    ],
)
def test_a_checkpoint_without_a_config_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare.pth holds no config.*from_config"):
        KDEOV.from_checkpoint(tmp_path / "bare.pth")


@pytest.mark.parametrize("content", [b"", b"this is no checkpoint", None])
def test_a_damaged_checkpoint_is_named(
    checkpoint: Path, tmp_path: Path, content: bytes | None
) -> None:
    whole = checkpoint.read_bytes()
    path = tmp_path / "damaged.pth"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        KDEOV.from_checkpoint(path)


HOSTILE = (
    "__import__('os').system('touch {path}')",
    "open('{path}', 'w')",
    "exec(\"open('{path}', 'w')\")",
    "dict(type='KDEOVDetector', backbone=open('{path}', 'w'))",
    "dict(open('{path}', 'w'))",
    "dict(**open('{path}', 'w'))",
    "{{**open('{path}', 'w')}}",
    "[open('{path}', 'w') for _ in 'a']",
    "(lambda: open('{path}', 'w'))()",
    'f\'{{open("{path}", "w")}}\'',
    "dict.fromkeys(open('{path}', 'w'))",
)


@pytest.mark.parametrize("which", range(len(HOSTILE)))
def test_the_config_of_a_checkpoint_is_never_run(
    checkpoint: Path, tmp_path: Path, which: int
) -> None:
    ran, path = tmp_path / "ran", tmp_path / "hostile.pth"
    content = torch.load(checkpoint, weights_only=True)
    text = content["meta"]["cfg"]
    number = len(text.splitlines()) + 1
    content["meta"]["cfg"] = (
        f"{text.rstrip()}\nextra = {HOSTILE[which].format(path=ran)}\n"
    )
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"line {number} .*no plain value"):
        KDEOV.from_checkpoint(path)
    read_config(content["meta"]["cfg"])
    assert not ran.exists()


@pytest.mark.parametrize(
    "code", ["import os\nos.mkdir('{path}')", "open('{path}', 'w')"]
)
def test_statements_of_a_config_are_never_run(tmp_path: Path, code: str) -> None:
    ran = tmp_path / "ran"
    text = f"model = dict(type='KDEOVDetector')\n{code.format(path=ran)}\n"
    for strict in (True, False):
        assert read_config(text, strict) == dict(model=dict(type="KDEOVDetector"))
    assert not ran.exists()


@pytest.mark.parametrize(
    "name",
    [
        JOINT,
        "kdeov_n_ovlvis.py",
        "ablations/fusion_attention.py",
        ROOT / "configs/image_text/r50_coco.py",
    ],
)
def test_a_config_is_read_as_mmengine_wrote_it(name: Any) -> None:
    cfg = Config.fromfile(ROOT / "configs/kdeov" / name, lazy_import=False)
    assert read_config(cfg.pretty_text, strict=True) == cfg.to_dict()


def test_a_config_can_be_a_dictionary_and_its_values_any_literals() -> None:
    assert read_config(dict(a=1), strict=True) == dict(a=1)
    text = "a = -1e-9\nb = dict(c=(1, None, True), d={'e': ['f', inf]})\ng = 'x' 'y'"
    wanted = dict(a=-1e-9, b=dict(c=(1, None, True), d=dict(e=["f", float("inf")])))
    assert read_config(text, strict=True) == dict(wanted, g="xy")
    assert read_config('{"a": true, "b": null}', strict=True) == dict(a=True, b=None)
    assert read_config("a = b + c\nd = 1") == dict(a=None, d=1)
    for nothing in (None, "", "# a comment", "no python at all"):
        assert read_config(nothing, strict=True) is None
