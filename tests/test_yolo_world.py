"""YOLO-World's public weights: parity with their code, their names, their text tower.

``yolo_world.npz`` holds what YOLO-World's own code says (commit 4f70adb; one line that
does not compile mended, its text model replaced by the vectors of ``inputs``) of S and
L of version 2 and S of version 1, with the numbers of ``numbers``, for 3, 80 and 1203
words: 128 values (``sampled``) of each map of the neck, of the scores and of the boxes
before suppression. The numbers follow from the weights' names, so none are stored.
"""

import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from kdeov_mm import KDEOV, yolo_world
from kdeov_mm.checkpoints import load_model
from kdeov_mm.clip import CLIPTextEncoder
from kdeov_mm.inference.export import export_onnx
from kdeov_mm.models import KDEOVDetector, TextEmbeds
from kdeov_mm.vocabulary import Vocabulary

from .conftest import load_tool

FIXTURE = Path(__file__).with_name("yolo_world.npz")
HEAD = yolo_world.HEAD


def numbers(key: str, shape: tuple[int, ...]) -> Tensor:
    """A weight, from its name alone."""
    x = torch.randn(shape, generator=seeded(zlib.crc32(key.encode())))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        return 1 + x.abs() / 4
    if key.endswith("logit_scale"):
        return x / 4 - 1
    if len(shape) < 2:
        scale = key.endswith((".bn.weight", ".norm.weight"))
        return scale * 1.2 + x / (8 if shape else 4)
    gain = 0.6 if ".blocks." in key or "reg_preds" in key else 2.2
    gain = 40.0 if "guide_fc" in key else gain
    return x * (gain / math.prod(shape[1:])) ** 0.5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(words: int) -> tuple[Tensor, Tensor]:
    """An image and the vectors of some words."""
    source = seeded(words)
    image = torch.rand((1, 3, 96, 160), generator=source)
    return image, F.normalize(torch.randn((words, 512), generator=source), dim=1)


def sampled(key: str, values: Tensor, number: int = 128) -> Tensor:
    source = seeded(zlib.crc32(key.encode()))
    return values.flatten()[torch.randint(values.numel(), (number,), generator=source)]


@cache
def detector(size: str, version: str) -> KDEOVDetector:
    """A detector of ours, as it is built for a file of theirs, not loaded."""
    widen, last = dict(s=(0.5, 1024), l=(1.0, 512))[size]
    begin = {
        "backbone.image_model.stem.conv.weight": torch.zeros(round(64 * widen), 1),
        "neck.attn_block.guide_fc.weight": torch.zeros(1),
        f"{HEAD}cls_preds.0.2.weight": torch.zeros(512, 1),
    }
    if version == "v1":
        begin["neck.text_enhancer"] = torch.zeros(1)
    cfg = Config(yolo_world.config_of(begin))
    assert cfg.model.backbone.last_stage_out_channels == last
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model).eval()
    model.cfg = cfg
    return model


def theirs(size: str, version: str, text: bool = False) -> dict[str, Tensor]:
    """A state dict of theirs, with names as their code writes them."""
    shapes = {
        k: tuple(v.shape) for k, v in detector(size, version).state_dict().items()
    }
    state: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        at, _, name = key.partition(".2.project.")
        level = at.removeprefix(f"{HEAD}cls_preds.")
        if key.startswith("backbone."):
            state[key.replace("backbone.", "backbone.image_model.", 1)] = shape
        elif key.startswith("fusion."):
            state[key.replace("fusion.", "neck.", 1)] = shape
        elif name.startswith("conv"):
            state[f"{at}.2.{name.removeprefix('conv.')}"] = shape
            state[f"{at}.2.bias"] = shape[:1]
        elif name:
            end = name.removeprefix("bn.")
            state[f"{HEAD}cls_contrasts.{level}.norm.{end}"] = shape
        elif "classifier" not in key:
            state[key] = shape
    for i in range(3):
        for name in ("bias", "logit_scale"):
            state[f"{HEAD}cls_contrasts.{i}.{name}"] = ()
    if text:
        state |= text_shapes()
    return {key: numbers(key, shape) for key, shape in state.items()}


def text_shapes(width: int = 64, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Of a small text tower of Hugging Face's CLIP, with OpenAI's tokens."""
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
        "text_projection.weight": (512, width),
    }
    wide = dict(fc1=(4 * width, width), fc2=(width, 4 * width))
    for i in range(layers):
        at = f"text_model.encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{at}{name}.weight"] = shapes[f"{at}{name}.bias"] = (width,)
        parts = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
        parts |= {f"mlp.{name}": shape for name, shape in wide.items()}
        for name, shape in parts.items():
            shapes[f"{at}{name}.weight"] = shape
            shapes[f"{at}{name}.bias"] = shape[:1]
    return {yolo_world.TEXT + key: shape for key, shape in shapes.items()}


@cache
def loaded(size: str, version: str) -> KDEOVDetector:
    model = detector(size, version)
    missing, unexpected = model.load_state_dict(theirs(size, version), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model


@torch.no_grad()
def outputs(model: Any, image: Tensor, text: Tensor | None) -> tuple[Tensor, ...]:
    """P3, P4, P5, all scores (1, K, N) and boxes (1, N, 4); of a folded one, too."""
    if text is None:
        feats = given = model.extract_feat(image)
    else:
        given = model.head_input(image, (), TextEmbeds(text))
        feats = given.feats
    logits, sides = model.bbox_head(given)
    scores = torch.cat([level.flatten(2) for level in logits], 2).sigmoid()
    return *feats, scores, model.bbox_head.decode(sides)


@pytest.mark.parametrize("words", [3, 80, 1203])
@pytest.mark.parametrize(("size", "version"), [("s", "v2"), ("l", "v2"), ("s", "v1")])
def test_maps_scores_and_boxes_are_those_of_their_code(
    size: str, version: str, words: int
) -> None:
    recorded, case = np.load(FIXTURE), f"{version}_{size}_{words}"
    image, text = inputs(words)
    model = loaded(size, version)
    vocabulary = Vocabulary(
        tuple(f"w{i}" for i in range(words)),
        vectors={f"w{i}": vector for i, vector in enumerate(text)},
        encoder=model.text_encoder.made_by,
    )
    # as it is, and with the words folded in
    for said in (
        outputs(model, image, text),
        outputs(model.fold(vocabulary), image, None),
    ):
        for name, values in zip(("p3", "p4", "p5", "scores", "boxes"), said):
            key = f"{case}_{name}"
            ours, expected = sampled(key, values), torch.from_numpy(recorded[key])
            # boxes are pixels of float32: 1e-4, and a hundred-thousandth
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def files(folder: Path) -> dict[str, Any]:
    """What is not what was asked for: kind -> the content of its file."""
    plain = theirs("s", "v2")
    gates = {k: v for k, v in plain.items() if "guide_fc" not in k}
    return {
        "v1 s": theirs("s", "v1"),
        "v2 l": theirs("l", "v2"),
        "closed set": gates,
        "baked into its neck": gates
        | {"neck.x.attn_block.guide_weight": torch.ones(1)},
        "baked into its head": plain | {f"{HEAD}cls_contrasts.0.conv.weight": gates},
        "mask branch": plain | {f"{HEAD}seg_preds.0.weight": torch.ones(1)},
        "learnt vectors": plain | {"embeddings": torch.ones(80, 512)},
        "prompted by images": plain | {"image_prompt_encoder.w": torch.ones(1)},
        "1 of its weights": plain | {"backbone.other.weight": torch.ones(1)},
        "web page": b"<!DOCTYPE html><html>Sign in</html>",
        "ONNX file": b"\x08\x07\x12\x07pytorch\x1a\x052.1.0",
        "whole model of ultralytics": b"\x80\x02cultralytics.nn\nWorldModel\n.",
        "part of a checkpoint": b"PK\x03\x04" + bytes(2000),
    }


@pytest.mark.parametrize("kind", files(Path()))
def test_another_file_is_called_by_what_it_is(kind: str, tmp_path: Path) -> None:
    file, content = tmp_path / "yolo_world.pth", files(tmp_path)[kind]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        kept = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        kept |= {k: torch.ones(1) for k in content if k not in kept}
        torch.save(dict(meta={}, state_dict=kept), file)
    # of another size or version only a config can say that it is wrong
    with pytest.raises(ValueError, match=kind) as error:
        load_model(detector("s", "v2").cfg, file)
    if kind not in ("v1 s", "v2 l"):
        with pytest.raises(ValueError, match=kind):
            KDEOV.from_checkpoint(file)
    advice = "take|Take|download"
    error.match(advice)


@pytest.mark.parametrize("form", ["whole", "alone", "moving average"])
def test_a_file_of_theirs_finds_words_without_a_config(
    form: str, tmp_path: Path
) -> None:
    file, state = tmp_path / "yolo_world.pth", theirs("s", "v2", text=True)
    content: Any = state
    if form == "whole":
        content = dict(meta=dict(epoch=100), state_dict=state)
    if form == "moving average":
        average = {f"module.{key}": value for key, value in state.items()}
        content = dict(ema_state_dict=dict(average, steps=torch.tensor(5)))
    torch.save(content, file)
    student = KDEOV.from_checkpoint(file)
    image = np.full((96, 160, 3), 90, np.uint8)
    (found,) = student.open_vocabulary_detect(image, ["cat", "dog"], 0.3)
    assert set(found["names"]) <= {"cat", "dog"} and len(found["names"])
    own = student.model.state_dict()
    torch.testing.assert_close(
        own["fusion.top_down_layers.0.attn_block.guide_fc.weight"],
        state["neck.top_down_layers.0.attn_block.guide_fc.weight"],
    )


def test_the_page_takes_a_file_of_theirs_and_names_others_as_the_export_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "yolo_world.pth", tmp_path / "cat.onnx"
    torch.save(theirs("s", "v2", text=True), file)
    web, export = load_tool("web"), load_tool("export_onnx")
    given = [str(file), str(out), "--words", "cat", "--size", "64"]
    pages = []
    with pytest.MonkeyPatch.context() as patch:
        # served to nobody, after the page is built
        patch.setattr("kdeov_mm.apps.web.serve", lambda page, *_: pages.append(page))
        patch.setattr("gradio.Blocks.block_thread", lambda page: None)
        assert web.main([str(file)]) == 0
    assert len(pages) == 1
    # other files are called by what they are, as everywhere
    for content, reason in ((b"<html>", "web page"), (b"PK\x03\x04", "part of a")):
        file.write_bytes(content)
        capsys.readouterr()
        assert web.main([str(file)]) == export.main(given) == 2
        assert capsys.readouterr().err.count(reason) == 2


@pytest.mark.slow
def test_a_file_of_version_1_is_exported_with_words_as_input(tmp_path: Path) -> None:
    """The words attend to the image, in the graph too; the export compares."""
    file, out = tmp_path / "yolo_world.pth", tmp_path / "words.onnx"
    torch.save(theirs("s", "v1", text=True), file)
    student = KDEOV.from_checkpoint(file).model
    worst = export_onnx(student, out, size=64)
    assert worst["scores"] < 1e-3 and worst["boxes"] < 1e-2


def hugging_face(state: dict[str, Tensor], sentence: str) -> Tensor:
    """A sentence by the tower of Hugging Face's CLIP, written down plainly."""
    own = {k.removeprefix(yolo_world.TEXT): v for k, v in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])

    # begin, words, end; their batches are filled with the end, which is masked
    words = open_clip.tokenizer.SimpleTokenizer().encode(sentence)
    tokens = [49406, *words, 49407, 49407, 49407]
    at = "text_model.embeddings."
    x = own[f"{at}token_embedding.weight"][tokens]
    x = x + own[f"{at}position_embedding.weight"][: len(tokens)]
    unseen = torch.ones(len(tokens), len(tokens)).triu(1).bool()
    unseen[:, len(words) + 2 :] = True
    for i in range(2):
        at = f"text_model.encoder.layers.{i}."
        y = norm(f"{at}layer_norm1", x)
        q, k, v = (linear(f"{at}self_attn.{n}_proj", y) for n in "qkv")
        weight = (q @ k.T / 8).masked_fill(unseen, -torch.inf).softmax(-1)
        x = x + linear(f"{at}self_attn.out_proj", weight @ v)
        y = linear(f"{at}mlp.fc1", norm(f"{at}layer_norm2", x))
        x = x + linear(f"{at}mlp.fc2", y * (1.702 * y).sigmoid())
    end = norm("text_model.final_layer_norm", x)[tokens.index(49407)]
    return F.normalize(own["text_projection.weight"] @ end, dim=0)


def test_words_are_those_of_the_text_model_in_the_file() -> None:
    state = {k: numbers(k, shape) for k, shape in text_shapes().items()}
    model = yolo_world.write_text_tower(state)
    assert model == yolo_world.write_text_tower(state)  # kept
    encoder = CLIPTextEncoder(model or "", templates=["{}"])
    words = ["cat", "fire hydrant", "a person riding a horse, at night"]
    expected = torch.stack([hugging_face(state, word) for word in words])
    torch.testing.assert_close(encoder(words), expected, atol=1e-5, rtol=1e-4)
    assert expected.std(0).mean() > 0.01  # they are not all alike


def test_their_texts_are_a_vocabulary(tmp_path: Path) -> None:
    file = tmp_path / "lvis_v1_class_texts.json"
    file.write_text('[["aerosol can", "spray can"], ["air conditioner"]]')
    words = Vocabulary.load(file).words
    assert words == (("aerosol can", "spray can"), ("air conditioner",))
