"""Checkpoints, images of any kind, drawings."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image

from kdeov_mm.checkpoints import load_model
from kdeov_mm.inference import drawing
from kdeov_mm.inference.drawing import draw
from kdeov_mm.reader import read_image

from ..conftest import WORDS, make_sample

WIDTH, HEIGHT = 61, 43


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """(H, W, 3) uint8 RGB, smooth, with four unlike corners."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x / WIDTH, y / HEIGHT, 1 - x * y / WIDTH / HEIGHT], -1)
    return (rgb * 255).astype(np.uint8)


# --------------------------------------------------------------------- reading


def test_channels_come_as_red_green_blue(scene: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), scene)


def test_gray_is_the_same_in_all_channels(scene: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(scene).convert("L").save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert (image == image[..., :1]).all() and image.std() > 10


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    Image.fromarray(gray.astype(np.uint16)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")[..., 0]
    assert np.abs(image - gray / 257).max() <= 1


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == [10, 20, 30]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white_paper(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    image.save(tmp_path / "a.png", **options)
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_a_turned_photo_stands_upright(scene: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise"
    turned = Image.fromarray(scene).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), scene)


def jpeg(path: Path, scene: np.ndarray) -> Path:
    Image.fromarray(scene).resize((640, 480)).save(path, quality=95)
    return path


def truncated_jpeg(path: Path, scene: np.ndarray) -> Path:
    data = jpeg(path, scene).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def huge_png(path: Path) -> Path:
    """The head of a PNG that claims 60000 x 60000 pixels."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    path.write_bytes(bytes(data))
    return path


def unreadable(folder: Path, scene: np.ndarray) -> list[Path]:
    """Files that are no images, or not whole ones."""
    text, empty = folder / "text.jpg", folder / "empty.png"
    text.write_text("this is no image")
    empty.write_bytes(b"")
    return [
        truncated_jpeg(folder / "truncated.jpg", scene),
        text,
        empty,
        huge_png(folder / "huge.png"),
    ]


@pytest.mark.parametrize("which", range(6))
def test_an_unreadable_file_is_named(
    scene: np.ndarray, tmp_path: Path, which: int
) -> None:
    paths = [*unreadable(tmp_path, scene), tmp_path / "missing.jpg", tmp_path]
    path = paths[which]
    with pytest.raises(OSError, match=path.name):
        read_image(path)


def every_kind(folder: Path, scene: np.ndarray) -> list[Path]:
    rgb = Image.fromarray(scene)
    images = {
        "rgb.png": rgb,
        "gray.png": rgb.convert("L"),
        "rgba.png": rgb.convert("RGBA"),
        "palette.gif": rgb.convert("P"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "one_bit.png": rgb.convert("1"),
        "sixteen_bits.png": Image.fromarray(scene[..., 0].astype(np.uint16) * 257),
        "pixel.png": rgb.resize((1, 1)),
        "wide.jpg": rgb.resize((6000, 40)),
        "column.png": rgb.resize((2, 300)),
    }
    for name, image in images.items():
        image.save(folder / name)
    return [folder / name for name in images]


def test_a_missing_checkpoint_says_how_to_get_one(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.pth.*tools/train.py"):
        load_model(load_config("kdeov_n_shapes.py"), tmp_path / "nothing.pth")


# --------------------------------------------------------------------- drawing


def found_sample(truth: bool) -> object:
    sample = make_sample([[5, 5, 30, 30]], [0], shape=(HEIGHT, WIDTH))
    if not truth:
        del sample.gt_instances
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 8, 40, 30], [2, 2, 9, 9]]),
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.9, 0.1]),
    )
    return sample


PALETTE = [(255, 0, 0), (0, 255, 0)] * 3


def test_truth_stands_left_of_the_predictions(scene: np.ndarray) -> None:
    alone = draw(scene, found_sample(truth=False), WORDS, PALETTE, min_side=320)
    both = draw(scene, found_sample(truth=True), WORDS, PALETTE, min_side=320)
    assert alone.dtype == np.uint8 and max(alone.shape) == 320
    assert both.shape == (alone.shape[0], 2 * alone.shape[1], 3)
    assert np.array_equal(both[:, alone.shape[1] :], alone)
    assert not np.array_equal(both[:, : alone.shape[1]], alone)


def test_only_sure_predictions_are_drawn(scene: np.ndarray) -> None:
    sample = found_sample(truth=False)
    some = draw(scene, sample, WORDS, PALETTE, score_threshold=0.5)
    every = draw(scene, sample, WORDS, PALETTE, score_threshold=0.05)
    none = draw(scene, sample, WORDS, PALETTE, score_threshold=0.95)
    plain = Image.fromarray(scene).resize(none.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.array_equal(none, np.asarray(plain))
    assert (some != none).any() and (every != some).any()


def test_marked_names_look_different(scene: np.ndarray) -> None:
    sample = found_sample(truth=False)
    plain = draw(scene, sample, WORDS, PALETTE)
    marked = draw(scene, sample, WORDS, PALETTE, marked=[WORDS[1]])
    other = draw(scene, sample, WORDS, PALETTE, marked=[WORDS[4]])
    assert (plain != marked).any() and np.array_equal(plain, other)


def test_drawing_leaves_the_sample_alone(scene: np.ndarray) -> None:
    sample = found_sample(truth=True)
    before = sample.pred_instances.bboxes.clone()
    draw(scene, sample, WORDS, PALETTE)
    assert torch.equal(sample.pred_instances.bboxes, before)
    assert sample.gt_instances.bboxes.tolist() == [[5, 5, 30, 30]]


def test_of_two_names_of_a_box_the_better_lies_on_top(scene: np.ndarray) -> None:
    drawn = []
    for scores in ([0.9, 0.6], [0.6, 0.9]):
        for order in ([0, 1], [1, 0]):
            sample = found_sample(truth=False)
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([[10.0, 8, 40, 30]] * 2),
                labels=torch.tensor([1, 0])[order],
                scores=torch.tensor(scores)[order],
            )
            drawn.append(draw(scene, sample, WORDS, PALETTE))
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[2], drawn[3])
    assert (drawn[0] == PALETTE[1]).all(-1).sum() > 100
    assert not (drawn[0] == PALETTE[0]).all(-1).any()
    assert (drawn[2] == PALETTE[0]).all(-1).sum() > 100


@pytest.mark.parametrize("size", [(801, 533), (900, 1301), (40, 3000)])
def test_a_large_image_keeps_its_pixels(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    sample = found_sample(truth=False)
    assert np.array_equal(draw(image, sample, WORDS, PALETTE, (), "", 0.95), image)
    drawn = draw(image, sample, WORDS, PALETTE)
    assert drawn.shape == image.shape and (drawn[31:, 400:] == image[31:, 400:]).all()


def test_names_that_no_font_has_stay_different_and_are_said(
    scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(drawing, "_said", set())
    monkeypatch.setattr(drawing, "print_log", lambda text, *_: said.append(text))
    # characters that no script has yet
    names = ("\U000dfff0\U000dfff1", "\U000dfff2\U000dfff3", "waschbär", *WORDS[3:])
    draws = []
    for label in (0, 1, 1, 2):
        sample = found_sample(truth=False)
        sample.pred_instances.labels = torch.tensor([label, label])
        draws.append(draw(scene, sample, names, PALETTE * 9, (), "", 0.0))
    assert (draws[0] != draws[1]).any() and np.array_equal(draws[1], draws[2])
    assert len(said) == 2 and all("cannot be drawn" in text for text in said)


def test_a_font_that_has_the_letters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (other,) = {f.fname for f in drawing.fontManager.ttflist if f.name == "STIXGeneral"
                and f.style == "normal" and f.weight == 400}  # fmt: skip
    only = {*drawing._letters(other)} - {*drawing._letters(drawing.FONT)}
    letter = next(c for c in map(chr, sorted(only)) if c.isalpha())
    assert drawing.font_of("cat") == drawing.FONT
    assert drawing.font_of(letter) not in (drawing.FONT, None)
    assert drawing.readable(letter, 14)[0] == letter


def test_names_in_any_alphabet_are_drawn(scene: np.ndarray) -> None:
    names = ("grüner Würfel", "красный мяч", *WORDS[2:])
    sample = found_sample(truth=False)
    drawn = [draw(scene, sample, n, PALETTE, (), "", 0.0) for n in (names, WORDS)]
    assert (drawn[0] != drawn[1]).any()
