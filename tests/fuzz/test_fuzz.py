"""Made-up inputs to the public doors: each ends in a sentence, or in a right result.

``KDEOV_FUZZ=20000`` tries as many of each kind, other ones each time.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from kdeov_mm import KDEOV
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary

from ..conftest import load_tool
from ..inference.test_api import write_joint
from .harness import Answer, ask, ask_tool

NUMBER = int(os.environ.get("KDEOV_FUZZ", 25))
LIMITS = settings(
    max_examples=NUMBER,
    deadline=None,
    derandomize="KDEOV_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=[*HealthCheck],
)
IMAGE = np.zeros((40, 50, 3), np.uint8)
NAN = float("nan")
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
odd = st.recursive(
    plain | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=5,
)
json_like = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["names", "synonyms", "groups", "categories", "id", "name"]
            ),
            inner,
        )
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> Path:
    few = {"model.test_cfg.max_per_img": 5}
    return write_joint(tmp_path_factory.mktemp("joint"), load_config, **few)


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> KDEOV:
    return KDEOV.from_checkpoint(checkpoint)


def is_clear(answer: Answer) -> bool:
    assert answer.kind in ("sentence", "result"), answer
    return answer.kind == "sentence"


@LIMITS
@given(odd)
@example([[]])
@example({"a": ["b"]})
@example({"a", "b"})
@example(["a", "a"])
@example(["b.csv"])
@example(["\u200b"])
@example(["\ud800"])
@example(["x" * 10**6])
@example(np.array(3))
def test_words(words: Any) -> None:
    answer = ask(lambda: as_vocabulary(words))
    if not is_clear(answer):
        assert isinstance(words, (str, list, tuple))
        assert all(own and own[0].strip() for own in answer.result.words)


@LIMITS
@given(odd)
@example(torch.full((3, 8, 8), NAN))
@example(torch.zeros(3, 8, 8, dtype=torch.complex64))
@example(np.zeros((4, 5, 4), np.uint8))
@example({})
@example("missing.png")
def test_images(student: KDEOV, images: Any) -> None:
    assert is_clear(ask(lambda: student.encode_image(images))) or images == []


def test_images_of_every_right_form_are_taken(student: KDEOV) -> None:
    batch = torch.zeros(2, 3, 8, 8)
    for images in (IMAGE, [IMAGE], batch, np.zeros((2, 4, 5, 3), np.uint8)):
        assert not is_clear(ask(lambda images=images: student.encode_image(images)))


@LIMITS
@given(odd)
@example(NAN)
@example("0.5")
@example(np.array([0.1, 0.2]))
def test_numbers(student: KDEOV, value: Any) -> None:
    words = ["red ball"]
    asked = ask(lambda: student.open_vocabulary_detect(IMAGE, words, value))
    assert is_clear(asked) or value is None or 0 <= value <= 1
    asked = ask(lambda: KDEOV(student.model, value))
    assert is_clear(asked) or (isinstance(value, int) and value >= 1)


@LIMITS
@given(json_like.map(json.dumps) | st.text(max_size=20))
@example("[" * 100_000)
@example('{"names": ["a"], "groups": 3}')
@example('["a", {"id": 1}]')
@example('{"categories": [{"id": 1}]}')
def test_files_of_words(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.mktemp("words") / "words.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    answer = ask(lambda: Vocabulary.load(path))
    assert is_clear(answer) or len(answer.result)


@LIMITS
@given(json_like)
@example({"cfg": "model = 3"})
@example({"cfg": "model = " + "-" * 100_000 + "1"})
@example({"cfg": {"model": {"type": 3}}})
@example([])
def test_checkpoints(tmp_path_factory: Any, meta: Any) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "a.pth"
    torch.save(dict(meta=meta, state_dict={}), path)
    assert is_clear(ask(lambda: KDEOV.from_checkpoint(path)))


CONFIGS = [
    *("model = dict(", "x = 1 / 0", "import nope_nope", "a = 3", "model = 3", ""),
    *("_base_ = 3", "import sys\nsys.exit(3)", "def f(): f()\nf()"),
    *("model = dict(type='Nope')\ntest_dataloader = 3\ntrain_dataloader = 3",),
]


@pytest.mark.parametrize(
    "tool", ["doctor", "cache_embeddings", "leaks", "test", "train"]
)
def test_configs_that_tools_are_given(
    tool: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    main, config = load_tool(tool).main, tmp_path / "config.py"
    more = [str(checkpoint)] if tool in ("leaks", "test") else []
    for text in CONFIGS:
        config.write_text(text)
        assert is_clear(ask_tool(main, [str(config), *more])), text


def test_parts_of_detect_that_are_damaged_are_made_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    main, out = load_tool("detect").main, tmp_path / "out"
    argv = [str(checkpoint), str(tmp_path / "a.png"), "--words", "red ball"]
    argv += ["--no-drawings", "--out", str(out)]
    assert not is_clear(ask_tool(main, argv))
    part = out / "parts/a.png.json"
    good = json.loads(part.read_text())
    for records in (3, None, [3], [{}], [dict(image={}, annotations=[3])]):
        part.write_text(json.dumps(dict(good, records=records)))
        assert not is_clear(ask_tool(main, argv))
        assert json.loads(part.read_text()) == good
