"""Checkpoints: their config is read as data, and what is none is refused."""

import ast
import dataclasses
import inspect
import json
import math
import socket
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import Image

from kdeov_mm import KDEOV
from kdeov_mm.checkpoints import (
    _registered_parts,
    check_parts,
    load_model,
    own_config,
    read_checkpoint,
    read_config,
)

from .conftest import ROOT, load_tool

# ----------------------------------------------------------------- the config


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "text, expected",
    [
        ("a = 1\nb = 'x'\nc = [1, (2.5, None)]", dict(a=1, b="x", c=[1, (2.5, None)])),
        ("a = -1\nb = -0.5\nc = +2\nd = 1 + 2j", dict(a=-1, b=-0.5, c=2, d=1 + 2j)),
        ("a = {'x': {1, 2}, 3: b'y'}", dict(a={"x": {1, 2}, 3: b"y"})),
        ("a = 'x' 'y'\n# nothing\n\nb = True", dict(a="xy", b=True)),
        ("model = dict(type='A', layers=[dict(n=1), dict(n=2)])",
         dict(model=dict(type="A", layers=[dict(n=1), dict(n=2)]))),
        ("a = dict(dict(x=1, y=dict(z=-2)), x=3)", dict(a=dict(x=3, y=dict(z=-2)))),
        ("a = dict({'x y': 1}, z=ConfigDict(w=OrderedDict()))",
         {"a": {"x y": 1, "z": {"w": {}}}}),
        ("dict(a=1)", dict(a=1)),
        ("{'a': (1,)}", dict(a=(1,))),
    ],
)  # fmt: skip
def test_literals_and_nested_dicts_are_read(
    text: str, expected: dict[str, Any], strict: bool
) -> None:
    assert read_config(text, strict) == expected


@pytest.mark.parametrize("strict", [False, True])
def test_json_is_read(strict: bool) -> None:
    content = dict(a=True, b=None, c=[False, 1.5, "x"], d=dict(e={}, f=[]))
    assert read_config(json.dumps(content), strict) == content
    assert read_config(json.dumps(content, indent=2), strict) == content


@pytest.mark.parametrize("strict", [False, True])
def test_infinities_are_numbers_wherever_they_stand(strict: bool) -> None:
    text = "a = inf\nb = -inf\nc = dict(ranges=[(-inf, 4), (4, inf)], x={'y': -inf})"
    found = read_config(text, strict)
    assert found == dict(
        a=math.inf,
        b=-math.inf,
        c=dict(ranges=[(-math.inf, 4), (4, math.inf)], x=dict(y=-math.inf)),
    )
    found = read_config("a = nan", strict)
    assert found is not None and math.isnan(found["a"])


@pytest.mark.parametrize("strict", [False, True])
def test_what_mmengine_writes_is_read(strict: bool) -> None:
    content = dict(
        model=dict(
            type="A", scale=(640, 640), factor=float("-inf"), flags=[None, True]
        ),
        pipeline=[dict(type="B", prob=[0.5, 0.25]), dict(type="C", names={"a b": 1})],
    )
    cfg = Config(content)
    assert read_config(cfg.pretty_text, strict) == content
    assert read_config(cfg.to_dict(), strict) == content


EXPRESSIONS = [
    ("a = b + c", None),
    ("a = b", None),
    ("a = os.sep", None),
    ("a = -x", None),
    ("a = 'x' % 3", None),
    ("a = f'{x}'", None),
    ("a = [i for i in range(3)]", None),
    ("a = x if y else z", None),
    ("a = lambda: 1", None),
    ("a = [1, x, (2, y.z)]", [1, None, (2, None)]),
    ("a = dict(b=f(c=1, *d), e=2)", dict(b=dict(c=1), e=2)),
    ("a = __import__('os').system('exit 1')", {}),
    ("a = open('x')", {}),
    ("a = {'b': 1, **c}", dict(b=1)),
    ("a = dict(b=1, **c)", dict(b=1)),
    ("a = dict([('b', 1)])", {}),
]


@pytest.mark.parametrize("text, expected", EXPRESSIONS)
def test_expressions_are_never_run_and_read_as_none(text: str, expected: Any) -> None:
    """Of a call its named values are read, of a dictionary what it writes out."""
    assert read_config(f"{text}\nd = 1") == dict(a=expected, d=1)


@pytest.mark.parametrize("text", [text for text, _ in EXPRESSIONS])
def test_strictly_an_expression_is_refused_with_its_line(text: str) -> None:
    message = "line 2 of the checkpoint's config is no plain value .*give the config"
    with pytest.raises(ValueError, match=message):
        read_config(f"d = 1\n{text}", strict=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("nothing", [None, "", "# x", "a =", "[1, 2]", "1", "'text'"])
def test_no_config_is_none(nothing: Any, strict: bool) -> None:
    assert read_config(nothing, strict) is None


# ------------------------------------------------------------- files and models


@pytest.mark.parametrize("harm", ["empty", "text", "cut", "zip", "zeros"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.pth"
    torch.save(dict(state_dict=dict(x=torch.ones(100))), path)
    whole = path.read_bytes()
    ones = torch.ones(100).numpy().tobytes()
    content = dict(
        empty=b"", text=b"no weights", cut=whole[: len(whole) // 2], zip=b"PK" * 40,
        zeros=whole.replace(ones, bytes(len(ones))),
    )  # fmt: skip
    path.write_bytes(content[harm])
    with pytest.raises(ValueError, match=r"a\.pth is no checkpoint, or damaged"):
        read_checkpoint(path)


def test_what_could_run_code_is_refused_and_nobody_is_told_to_trust_it(
    tmp_path: Path,
) -> None:
    torch.save(dict(state_dict={}, meta=dict(x=MODELS.build)), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="which could run code: ask its maker") as why:
        read_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(why.value)


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.pth does not exist; train one"):
        read_checkpoint(tmp_path / "gone.pth")


def test_a_trained_model_is_loaded_for_inference(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config("kdeov_n_shapes.py")
    pretrained = dict(type="Pretrained", checkpoint="gone.pth")  # not to be loaded
    cfg.model.backbone.init_cfg = cfg.model.neck.init_cfg = pretrained
    model = MODELS.build(cfg.model)
    meta = dict(dataset_meta=dict(classes=("cat", "dog")))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / "a.pth")
    loaded = load_model(cfg, tmp_path / "a.pth")
    assert not loaded.training and loaded.cfg.model.type == cfg.model.type
    assert cfg.model.backbone.init_cfg == pretrained
    assert load_model(cfg, None).cfg is cfg  # nor where nothing is trained
    assert loaded.dataset_meta == meta["dataset_meta"]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_of_another_model_is_refused(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    torch.save(dict(state_dict=dict(x=torch.ones(1))), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is of another model: \d+ of the"):
        load_model(load_config("kdeov_n_shapes.py"), tmp_path / "a.pth")


# -------------------------------------------------------- files from strangers

FOREIGN: dict[str, dict[str, Any]] = {
    "a function of Python": {"model.type": "subprocess.call"},
    "in a part": {"model.backbone.type": "os.system"},
    "in a list": {"model.neck": [dict(type="builtins.eval")]},
    "with a scope before it": {"model.backbone.type": "mmdet.os.system"},
    "a scope": {"default_scope": "antigravity"},
    "a scope of a part": {"model.neck._scope_": "antigravity"},
    "imports": {"custom_imports": dict(imports=["antigravity"])},
    "an expression": {
        "model.test_cfg.nms.type": "__import__('antigravity')",
    },
    "a hub": {"model.text_encoder.model": "hf-hub:someone/thing"},
    "no text": {"model.backbone.type": 3},
    "a list": {"model.backbone.type": ["os.system"]},
    "imports in a list": {"custom_imports": ["antigravity"]},
    "imports as text": {"custom_imports": dict(imports="antigravity")},
    "an evaluated value": {
        "model.test_cfg.assigner": dict(
            type="CameraMotionCompensation", warp_mode="__import__('antigravity')"
        )
    },
    "a language model": {"model.backbone": dict(type="BertModel", name="some/one")},
    "a teacher's file": {
        "model.neck": dict(
            type="KnowledgeDistillationSingleStageDetector", teacher_config="a.py"
        )
    },
    "a runner": {"model.type": "mmengine.Runner"},
    "a hook": {"model.backbone.type": "CheckpointHook"},
    "a function": {"model.backbone.type": "default_collate"},
    "a reader of files": {"model.backbone.type": "mmcv.LoadImageFromFile"},
    "another package": {"model.backbone.type": "torchvision.resnet18"},
    "a hub's teacher": {"model.teacher.model": "hf-hub:someone/thing"},
    "a hub's tokenizer": {
        "model.text_encoder.model": "roberta-ViT-B-32",
        "model.text_encoder.pretrained": "random",
    },
    "SigLIP's tokenizer": {"model.text_encoder.model": "ViT-B-16-SigLIP"},
    "no CLIP": {"model.text_encoder.model": "someone/thing"},
    "an address": {"model.text_encoder.vocabulary": "https://example.org/v.json"},
}
# texts and dictionaries that are no config
ODD: dict[str, Any] = {
    "deep": "model = " + "[" * 9999 + "]" * 9999,
    "minus": "model = " + "-" * 99999 + "1",
    "long": "model = dict(a='" + "a" * 2**21 + "')",
    "a list": dict(model=["os.system"]),
    "assigned": "model = dict()\nx = __import__('antigravity')",
    "star": "model = dict(**__import__('antigravity').x)",
    "text": "model = 'os.system'",
    "reserved": dict(model=dict(type="KDEOVDetector"), filename="/etc/passwd"),
    "in itself": dict(model={}),
}
ODD["in itself"]["model"]["x"] = ODD["in itself"]["model"]


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=[*FOREIGN])
def test_a_config_of_a_stranger_names_registered_parts_alone(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    cfg = Config.fromfile(ROOT / "configs/kdeov/kdeov_n_shapes.py", lazy_import=False)
    cfg.merge_from_dict(changes)
    (entry, *_) = changes
    with pytest.raises(ValueError, match=entry.split(".")[0]) as error:
        own_config(dict(meta=dict(cfg=cfg.to_dict())), "theirs.pth")
    assert "KDEOV.from_config" in str(error.value)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("config", ODD.values(), ids=[*ODD])
def test_an_odd_config_is_refused_and_not_run(config: Any) -> None:
    with pytest.raises(ValueError, match=r"theirs\.pth|give the config file"):
        own_config(dict(meta=dict(cfg=config)), "theirs.pth")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "tool", ["detect", "segment", "export_onnx", "search_images", "web", "api"]
)
def test_every_tool_that_builds_from_a_file_comes_through_this_door(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dict(model=dict(type="antigravity.geohash"))
    path = str(tmp_path / "theirs.pth")
    torch.save(dict(meta=dict(cfg=config), state_dict={}), path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images, out = str(tmp_path / "a.png"), str(tmp_path / "out")
    arguments = {
        "detect": [path, images, "--words", "a", "--out", out],
        "segment": [path, images, "--words", "a", "--out", out],
        "export_onnx": [path, f"{out}.onnx", "--words", "a"],
        "search_images": ["a", str(tmp_path), "--checkpoint", path],
        "web": [path, "--images", str(tmp_path)],
    }
    if tool == "api":
        with pytest.raises(ValueError, match=r"model\.type 'antigravity\.geohash'"):
            KDEOV.from_checkpoint(path)
    else:
        assert load_tool(tool).main(arguments[tool]) in (1, 2)
        assert "model.type 'antigravity.geohash'" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


def test_parts_that_are_let_in_open_nothing_as_they_are_built() -> None:
    """Of mm packages: calls that read files, ask hubs or evaluate text."""
    calls = {"from_pretrained", "fromfile", "import_module", "load", "load_checkpoint"}
    calls |= {"urlopen", "load_state_dict_from_url"}
    # weights are not initialised
    for name, part in _registered_parts().items():
        file = inspect.getsourcefile(part) if inspect.isclass(part) else None
        if file is None or not part.__module__.startswith("mm"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            if function.name == "init_weights" or name == "Pretrained":
                continue
            used = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
            names = {f.attr for f in used if isinstance(f, ast.Attribute)} & calls
            plain = {f.id for f in used if isinstance(f, ast.Name)}
            names |= plain & {*calls, "eval", "exec"}
            assert not names, (name, function.name)


def test_a_tag_in_a_checkpoint_is_not_downloaded(
    load_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config("kdeov_n_shapes.py")
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(meta=dict(cfg=cfg.to_dict()), state_dict=state), tmp_path / "a.pth")
    student = KDEOV.from_checkpoint(tmp_path / "a.pth")
    source = student.model.text_encoder.source
    named = dataclasses.replace(source, model="RN50-quickgelu", pretrained="openai")
    monkeypatch.setattr(socket.socket, "connect", None)
    with pytest.raises(FileNotFoundError, match="what a checkpoint names is not"):
        named.weights_file()


def test_every_config_of_ours_names_registered_parts_alone() -> None:
    for path in (ROOT / "configs").rglob("*.py"):
        if "_base_" not in str(path):
            check_parts(Config.fromfile(path, lazy_import=False).to_dict(), path)


def test_a_checkpoint_with_a_program_is_not_resumed(tmp_path: Path) -> None:
    program = "open('ran', 'w').close()"
    torch.save(
        dict(meta=dict(config=program, epoch=0, iter=1), state_dict={}),
        tmp_path / "theirs.pth",
    )
    tool = load_tool("train")
    page = str(ROOT / "configs/kdeov/kdeov_n_shapes.py")
    arguments = ["--resume", str(tmp_path / "theirs.pth"), "--work-dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="runs as code|which mmengine runs"):
        tool.main([page, *arguments])
    assert not Path("ran").exists()


@pytest.mark.parametrize("device", ["nope", "cuda:77", "", "meta:x"])
def test_a_device_that_is_not_here_is_said(
    device: str, load_config: Callable[..., Config]
) -> None:
    with pytest.raises(ValueError, match=rf"--device {device}: expected cpu, or a GPU"):
        load_model(load_config("kdeov_n_shapes.py"), None, device)
