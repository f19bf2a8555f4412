"""Masks by words, from the tool, the page and the drawing."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import PixelData
from PIL import Image

from kdeov_mm import KDEOV
from kdeov_mm.apps import answers
from kdeov_mm.datasets.segmentation import read_mask
from kdeov_mm.engine import SegVisualizer
from kdeov_mm.inference.drawing import draw_labels

from ..conftest import ROOT, WORDS, load_tool, run_env

ASKED = ", ".join(WORDS)


def write_student(folder: Path, load_config: Callable[..., Config]) -> Path:
    """An untrained student of masks, as tools/train.py saves one."""
    cfg = load_config("../seg/seg_shapes_none.py")
    model = MODELS.build(cfg.model)
    model.init_weights()
    file = folder / "student.pth"
    meta = dict(cfg=cfg.pretty_text)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), file)
    return file


@pytest.fixture
def checkpoint(load_config: Callable[..., Config], tmp_path: Path) -> Path:
    return write_student(tmp_path, load_config)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two images of noise, a video of four frames, and a file that is no image."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for name, size in (("a.png", (60, 80)), ("b.jpg", (90, 50))):
        pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    video = cv2.VideoWriter(str(folder / "film.mp4"), codec, 10, (64, 48))
    for _ in range(4):
        video.write(rng.integers(256, size=(48, 64, 3), dtype=np.uint8))
    video.release()
    (folder / "broken.png").write_text("no image")
    return folder


def test_the_tool_writes_masks_and_drawings(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    out, tool = tmp_path / "out", load_tool("segment")
    inputs = [str(pictures), str(pictures / "film.mp4")]
    command = [str(checkpoint), *inputs, "--words", ASKED, "--out", str(out)]
    assert tool.main([*command, "--every", "2"]) == 1
    assert "could not be read: broken.png" in capsys.readouterr().err
    assert json.loads((out / "words.json").read_text()) == [*WORDS]
    # the masks are those of the interface, of the images' sizes
    student = KDEOV.from_checkpoint(checkpoint)
    for name in ("a.png", "b.jpg"):
        (found,) = student.segment(pictures / name, WORDS)
        mask = read_mask(out / f"masks/{name}.png")
        np.testing.assert_array_equal(mask - 1, found["labels"])
        assert (out / "vis" / name).is_file()
    assert len(list((out / "masks").glob("film.mp4_*.png"))) == 2
    assert (out / "vis/film.mp4").is_file()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--threshold", "2"], r"threshold lies in \[0, 1\], got 2"),
        (["--words", ""], "empty word"),
    ],
)
def test_the_tool_says_what_is_wrong(
    more: list[str], reason: str, checkpoint: Path, pictures: Path, capsys: Any
) -> None:
    tool = load_tool("segment")
    command = [str(checkpoint), str(pictures / "a.png"), "--words", ASKED]
    assert tool.main([*command, *more]) == 2
    assert re.search(reason, capsys.readouterr().err)


def test_the_tool_starts_by_itself() -> None:
    tool = [sys.executable, str(ROOT / "tools/segment.py"), "--help"]
    done = subprocess.run(tool, capture_output=True, text=True, env=run_env())
    assert done.returncode == 0 and "label maps" in done.stdout, done.stderr


def test_what_has_no_class_is_not_drawn_as_one() -> None:
    visualizer = SegVisualizer()
    image, palette = np.full((60, 60, 3), 90, np.uint8), [(255, 0, 0), (0, 0, 255)]
    labels = torch.full((1, 60, 60), -2)
    labels[0, :30] = -1
    plain = visualizer._draw_sem_seg(
        image, PixelData(sem_seg=labels), ("cat", "dog"), palette
    )
    np.testing.assert_array_equal(plain, image)
    labels[0, 40:] = 1
    drawn = visualizer._draw_sem_seg(
        image, PixelData(sem_seg=labels), ("cat", "dog"), palette
    )
    assert (drawn[58, 2] != 90).any() and (drawn[20, 20] == 90).all()


def test_the_page_answers_with_a_coloured_image(
    checkpoint: Path, pictures: Path
) -> None:
    student = KDEOV.from_checkpoint(checkpoint)
    drawing, sentence = answers.segment(student, pictures / "a.png", ASKED)
    assert drawing is not None and drawing.shape[1] == 800
    assert re.search(r"^red ball|% of the pixels, in |^None of the words", sentence)
    nothing, reason = answers.segment(student, pictures / "broken.png", ASKED)
    assert nothing is None and reason.startswith("The file broken.png is no image")
    assert answers.segment(student, pictures / "a.png", " ")[1].startswith(
        "There are no"
    )


def test_the_page_has_a_tab_of_masks(checkpoint: Path, tmp_path: Path) -> None:
    web = pytest.importorskip("kdeov_mm.apps.web")
    page = web.build_page(KDEOV.from_checkpoint(checkpoint), (), tmp_path)
    labels = {block.label for block in page.blocks.values() if hasattr(block, "label")}
    assert "Masks" in labels and not labels & {"Find", "Search", "Boxes"}


def test_a_legend_names_the_words_that_are_there() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    labels = np.full((40, 60), -1)
    labels[:20], labels[20:30] = 2, 0
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawn = draw_labels(image, labels, ("cat", "dog", "tree"), palette, alpha=1.0)
    height = round(800 * 40 / 60)
    assert drawn.shape[1] == 800 and drawn.shape[0] > height
    assert drawn[5, 5].tolist() == [0, 0, 255]
    assert drawn[height - 5, 5].tolist() == [200, 200, 200]
    legend = drawn[height:].reshape(-1, 3).tolist()
    assert [0, 0, 255] in legend and [255, 0, 0] in legend
    assert [0, 255, 0] not in legend  # no dog
    plain = draw_labels(image, labels, ("cat", "dog", "tree"), palette, legend=False)
    assert plain.shape[0] == height
    # of no word at all nothing is added
    empty = draw_labels(image, labels * 0 - 1, ("cat",), palette[:1], min_side=1)
    np.testing.assert_array_equal(empty, image)
