"""ONNX files say what PyTorch says, for any batch, size and number of words."""

import copy
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import Image

from kdeov_mm import KDEOV
from kdeov_mm.inference import export
from kdeov_mm.inference.export import export_onnx, onnx_model, read_metadata
from kdeov_mm.models import KDEOVDetector
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary

from ..conftest import EMBED_DIMS, ROOT, WORDS
from ..models.test_folded import build, samples

CLASSES = as_vocabulary(WORDS).words
CLIENT = ROOT / "docs/onnx_client.py"
PIXELS = dict(
    type="DetDataPreprocessor",
    mean=[0.0] * 3,
    std=[255.0] * 3,
    bgr_to_rgb=True,
    pad_size_divisor=32,
)
LIMITS = dict(score_thr=0.05, nms_pre=30000, max_per_img=40)


@pytest.fixture(scope="module")
def student(build_detector: Callable[..., KDEOVDetector]) -> KDEOVDetector:
    """Boxes of all scores, one third of them below the threshold."""
    model = build(build_detector)
    model.bbox_head.test_cfg.update(LIMITS)
    model.bbox_head.test_cfg.nms.iou_threshold = 0.5
    scale = dict(type="Resize", scale=(96, 96), keep_ratio=True)
    loader = dict(dataset=dict(pipeline=[scale]))
    model.cfg = Config(dict(model=dict(), test_dataloader=loader))
    return model


@pytest.fixture(scope="module", autouse=True)
def traced(student: KDEOVDetector) -> Iterator[None]:
    """The student's graph is traced once for each form: it takes long."""
    honest, known = export.graph_to_onnx, {}

    def remembered(graph: Any, sample: Any, outputs: Any) -> Any:
        # the same weights and words give the same file
        weights = [value.sum().item() for value in graph.state_dict().values()]
        key = (len(sample), len(outputs), *weights)
        if key not in known:
            known[key] = honest(graph, sample, outputs)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "graph_to_onnx", remembered)
        yield


@pytest.fixture(scope="module")
def files(
    student: KDEOVDetector, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], Path]:
    """Both forms, with the suppression in the graph and without."""
    folder = tmp_path_factory.mktemp("onnx")
    made = {}
    for form, words in (("folded", WORDS), ("vocabulary", None)):
        for nms in (False, True):
            path = made[form, nms] = folder / f"{form}_{nms}.onnx"
            worst = export_onnx(student, path, words, nms)
            assert max(worst.values()) < 1e-3
    return made


def open_file(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def feed(
    student: KDEOVDetector, form: str, images: torch.Tensor, words: Any = WORDS
) -> dict[str, np.ndarray]:
    given = dict(images=images.numpy())
    if form == "vocabulary":
        given["text"] = student.text_encoder(words).numpy()
    return given


@pytest.mark.parametrize("form", ["folded", "vocabulary"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 96, 64), (2, 64, 256)])
def test_all_boxes_and_scores(
    form: str,
    shape: tuple[int, int, int],
    student: KDEOVDetector,
    files: dict[tuple[str, bool], Path],
) -> None:
    images = torch.rand(shape[0], 3, *shape[1:])
    with torch.no_grad():
        logits, sides = student.bbox_head(student.head_input(images, CLASSES))
        boxes = student.bbox_head.decode(sides)
    session = open_file(files[form, False])
    got = session.run(None, feed(student, form, images))
    scores = torch.cat([level.flatten(2) for level in logits], 2).sigmoid()
    assert np.abs(got[0] - boxes.numpy()).max() < 1e-3
    assert np.abs(got[1] - scores.numpy()).max() < 1e-3


@pytest.mark.parametrize("number", [1, 500])
def test_any_number_of_words(
    number: int, student: KDEOVDetector, files: dict[tuple[str, bool], Path]
) -> None:
    words = [f"word {i}" for i in range(number)]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        logits, _ = student.bbox_head(
            student.head_input(images, as_vocabulary(words).words)
        )
    given = feed(student, "vocabulary", images, words)
    _, scores = open_file(files["vocabulary", False]).run(None, given)
    expected = torch.cat([level.flatten(2) for level in logits], 2).sigmoid()
    assert scores.shape == expected.shape and scores.shape[1] == number
    assert np.abs(scores - expected.numpy()).max() < 1e-3


@pytest.mark.parametrize("form", ["folded", "vocabulary"])
@pytest.mark.parametrize("nms", [False, True])
def test_it_is_a_detector_of_mmdet_with_the_same_boxes(
    form: str,
    nms: bool,
    student: KDEOVDetector,
    files: dict[tuple[str, bool], Path],
    tiny_clip: str,
) -> None:
    cfg = onnx_model(
        str(files[form, nms]),
        dict(
            data_preprocessor=PIXELS,
            text_encoder=dict(type="CLIPTextEncoder", model=tiny_clip),
            test_cfg=student.bbox_head.test_cfg,
        ),
    )
    exported = MODELS.build(cfg)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        one, other = (
            model.predict(images, samples((60, 90), WORDS))
            for model in (student, exported)
        )
    for these, those in zip(one, other, strict=True):
        mine, theirs = these.pred_instances, those.pred_instances
        assert len(mine) == len(theirs) == LIMITS["max_per_img"]
        torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(mine.bboxes, theirs.bboxes, atol=1e-3, rtol=0)
        assert mine.label_names == theirs.label_names


def test_no_box_is_an_answer_too(
    student: KDEOVDetector, tmp_path: Path, files: dict[tuple[str, bool], Path]
) -> None:
    picky = copy.deepcopy(student)
    picky.cfg = student.cfg
    picky.bbox_head.test_cfg.score_thr = 0.999
    export_onnx(picky, tmp_path / "a.onnx", WORDS, nms=True)
    given = feed(student, "folded", torch.rand(2, 3, 64, 64))
    boxes, scores, labels, image = open_file(tmp_path / "a.onnx").run(None, given)
    assert boxes.shape == (0, 4) and not len(scores) + len(labels) + len(image)


def test_the_folded_form_has_no_text_product(
    files: dict[tuple[str, bool], Path],
) -> None:
    model = onnx.load(files["folded", False])
    count = Counter(node.op_type for node in model.graph.node)
    assert count["MatMul"] == 3  # the mean of each level's box distribution
    assert count["Gemm"] == count["Einsum"] == count["BatchNormalization"] == 0
    assert [value.name for value in model.graph.input] == ["images"]
    shapes = [tuple(i.dims) for i in model.graph.initializer]
    assert not any(len(s) == 2 and EMBED_DIMS in s for s in shapes)


def test_the_file_says_what_a_client_needs(
    student: KDEOVDetector, files: dict[tuple[str, bool], Path]
) -> None:
    for (form, nms), path in files.items():
        about = read_metadata(open_file(path))
        assert about["form"] == form and about["nms"] is nms
        assert about["names"] == ([*WORDS] if form == "folded" else [])
        assert about["encoder"] == student.text_encoder.made_by
        assert "weights_sha256" in about["encoder"]
        assert about["normalisation"]["channels"] == "RGB"
        assert about["normalisation"]["std"] == [255.0] * 3
        assert (about["size"], about["stride"]) == (96, 32)
        assert Config.fromstring(about["config"], ".py").test_dataloader


@pytest.mark.parametrize(
    "form, words",
    [
        pytest.param("film", None, marks=pytest.mark.slow),
        pytest.param("attention", WORDS, marks=pytest.mark.slow),
        ("group norm, unit length", None),
        pytest.param("group norm, unit length", WORDS, marks=pytest.mark.slow),
        pytest.param("light", None, marks=pytest.mark.slow),
    ],
)
def test_other_heads_and_fusions(
    form: str,
    words: Any,
    build_detector: Callable[..., KDEOVDetector],
    student: KDEOVDetector,
    tmp_path: Path,
) -> None:
    model = build(build_detector, form)
    model.cfg = student.cfg
    assert max(export_onnx(model, tmp_path / "a.onnx", words).values()) < 1e-3


@pytest.mark.parametrize("most", [40, 2])  # boxes: more than words, and fewer
def test_a_head_that_suppresses_nothing_has_no_suppression_in_its_file(
    most: int,
    build_detector: Callable[..., KDEOVDetector],
    student: KDEOVDetector,
    tmp_path: Path,
) -> None:
    model = build(build_detector, "light")
    model.cfg = student.cfg
    model.bbox_head.test_cfg.update(LIMITS, nms=None, max_per_img=most)
    export_onnx(model, tmp_path / "a.onnx", WORDS, nms=True)
    nodes = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "TopK" in nodes and not nodes & {"NonMaxSuppression", "Loop"}
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model.predict(images, samples((64, 96), WORDS))
    found = open_file(tmp_path / "a.onnx").run(None, dict(images=images.numpy()))
    boxes, scores, labels, image = map(torch.from_numpy, found)
    for i, sample in enumerate(wanted):
        own = sample.pred_instances
        assert 0 < len(own) == (image == i).sum() <= most
        torch.testing.assert_close(scores[image == i], own.scores, atol=1e-5, rtol=0)
        assert labels[image == i].tolist() == own.labels.tolist()
        clipped = boxes[image == i].clamp(min=0).minimum(torch.tensor([96, 64] * 2))
        torch.testing.assert_close(clipped, own.bboxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_file_that_says_something_else_is_not_written(
    wrong: float,
    student: KDEOVDetector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = export.graph_to_onnx

    def shifted(*args: Any) -> Any:
        # of the bias of some box side
        file = honest(*args)
        graph = args[0]
        name = next(k for k in graph.state_dict() if k.endswith("reg_preds.0.2.bias"))
        (bias,) = (each for each in file.graph.initializer if each.name == name)
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] += wrong
        bias.CopyFrom(onnx.numpy_helper.from_array(values, name))
        return file

    monkeypatch.setattr(export, "graph_to_onnx", shifted)
    with pytest.raises(ValueError, match="does not say what PyTorch does"):
        export_onnx(student, tmp_path / "a.onnx", WORDS)
    assert not list(tmp_path.iterdir())


def test_the_detector_stays_as_it_is(
    student: KDEOVDetector, files: dict[tuple[str, bool], Path]
) -> None:
    names = dict(student.named_modules())
    assert any(key.endswith(".bn") for key in names)
    assert student.bbox_head.head_module.folds


def test_other_words_than_those_folded_in_are_refused(
    student: KDEOVDetector, files: dict[tuple[str, bool], Path], tiny_clip: str
) -> None:
    cfg = onnx_model(
        str(files["folded", False]),
        dict(
            data_preprocessor=PIXELS,
            text_encoder=dict(type="CLIPTextEncoder", model=tiny_clip),
            test_cfg=student.bbox_head.test_cfg,
        ),
    )
    with pytest.raises(ValueError, match="answers for 6 words"):
        MODELS.build(cfg).predict(torch.rand(1, 3, 64, 64), samples((64, 64), ("cat",)))


@pytest.mark.parametrize(
    "change, words, nms, message",
    [
        (dict(multi_label=False), WORDS, True, "multi_label=True"),
        (dict(max_per_img=-1), WORDS, True, "max_per_img"),
        (dict(nms=dict(type="soft_nms", iou_threshold=0.5)), WORDS, True, "soft_nms"),
        ("max", None, False, "several vectors for a class"),
        ("no config", WORDS, False, "has no config"),
        ({}, (), False, "list of words"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    change: Any,
    words: Any,
    nms: bool,
    message: str,
    student: KDEOVDetector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if change == "max":
        monkeypatch.setattr(student, "synonyms", "max")
    elif change == "no config":
        monkeypatch.setattr(student, "cfg", None)
    else:
        test_cfg = copy.deepcopy(student.bbox_head.test_cfg)
        test_cfg.update(change)
        monkeypatch.setattr(student.bbox_head, "test_cfg", test_cfg)
    with pytest.raises(ValueError, match=message):
        export_onnx(student, tmp_path / "a.onnx", words, nms)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_config_is_refused(
    student: KDEOVDetector, files: dict[tuple[str, bool], Path], tiny_clip: str
) -> None:
    cfg = onnx_model(
        str(files["folded", False]),
        dict(
            data_preprocessor=dict(type="DetDataPreprocessor", bgr_to_rgb=True),
            text_encoder=dict(type="CLIPTextEncoder", model=tiny_clip),
            test_cfg=student.bbox_head.test_cfg,
        ),
    )
    with pytest.raises(ValueError, match="differ in their normalisation"):
        MODELS.build(cfg)
    with pytest.raises(ValueError, match="mean of synonyms"):
        onnx_model(str(files["folded", False]), dict(synonyms="max"))
    with pytest.raises(FileNotFoundError, match="export_onnx"):
        onnx_model("none.onnx", {})


# ----------------------------------------------------------------------- the client


def client() -> Any:
    spec = importlib.util.spec_from_file_location("onnx_client", CLIENT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("nms", [False, True])
def test_across_words_the_file_says_what_the_interface_says(
    nms: bool, student: KDEOVDetector, tmp_path: Path
) -> None:
    export_onnx(student, tmp_path / "a.onnx", WORDS, nms, agnostic=True)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    own = client()
    session, about = own.load(tmp_path / "a.onnx")
    assert about["agnostic"] is True
    boxes, scores, names = own.detect(session, about, noise, score_threshold=0.3)
    (found,) = KDEOV(student).open_vocabulary_detect(
        noise, WORDS, 0.3, 0.5, agnostic=True
    )
    assert len(boxes) > 3 and names == found["names"]
    assert np.abs(boxes - found["boxes"].numpy()).max() < 0.1
    assert np.abs(scores - found["scores"].numpy()).max() < 1e-3


@pytest.mark.parametrize("size", [(96, 96), (40, 77), (200, 31), (9, 5)])
@pytest.mark.parametrize("form", ["folded", "vocabulary"])
@pytest.mark.parametrize("nms", [False, True])
def test_the_client_finds_what_the_detector_finds(
    size: tuple[int, int],
    form: str,
    nms: bool,
    student: KDEOVDetector,
    files: dict[tuple[str, bool], Path],
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    small = Image.fromarray(noise).resize((size[1] // 3 + 1, size[0] // 3 + 1))
    image = np.asarray(small.resize(size[::-1]))
    own = client()
    session, about = own.load(files[form, nms])
    asked: Any = ()
    if form == "vocabulary":
        words = ((WORDS[0], "crimson ball"), *WORDS[1:])
        path = tmp_path / "words.safetensors"
        firsts = tuple(w if isinstance(w, str) else w[0] for w in words)
        every = tuple((w,) if isinstance(w, str) else w for w in words)
        Vocabulary(firsts, every).embed(student.text_encoder).save(path)
        asked = own.load_words(path, about)
    else:
        words = WORDS
    (found,) = KDEOV(student).open_vocabulary_detect(image, words, 0.1, 0.5)
    boxes, scores, names = own.detect(
        session, about, image, *asked, score_threshold=0.1
    )
    # OpenCV resizes in whole numbers: pixels differ by one, scores by a little
    assert abs(len(boxes) - len(found["boxes"])) <= 4
    assert len(boxes) > 5
    far = torch.cdist(torch.tensor(boxes), found["boxes"].double(), p=torch.inf)
    other = torch.tensor([[n != m for m in found["names"]] for n in names])
    near = (far + other * 1e4).min(1).values
    assert near.median() < 0.5 and (near < 2).double().mean() > 0.85


def test_the_client_needs_numpy_and_onnxruntime_alone(
    files: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((50, 40, 3), np.uint8))
    barred = "torch mmengine mmdet mmcv mmyolo PIL cv2 onnx kdeov_mm"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({barred.split()!r}))\n"
        f"sys.argv = ['client', {str(files['folded', False])!r}, "
        f"{str(tmp_path / 'a.npy')!r}]\n"
        f"exec(open({str(CLIENT)!r}).read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_client_refuses_vectors_of_another_clip(
    student: KDEOVDetector, files: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    own = client()
    _, about = own.load(files["vocabulary", False])
    path = tmp_path / "words.safetensors"
    Vocabulary(WORDS).embed(student.text_encoder).save(path)
    about["encoder"] = dict(about["encoder"], weights_sha256="0" * 64)
    with pytest.raises(ValueError, match="another CLIP"):
        own.load_words(path, about)
    assert json.dumps(about)
