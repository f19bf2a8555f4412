"""One reader: a file has the same pixels in all parts of the project, or none."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from PIL import Image

from kdeov_mm import reader
from kdeov_mm.inference.images import as_rgb
from kdeov_mm.reader import decode_image, read_image

from .conftest import ROOT

HEIGHT, WIDTH = 43, 61
Y, X = np.mgrid[:HEIGHT, :WIDTH]
SCENE = (
    np.stack([X / WIDTH, Y / HEIGHT, 1 - X * Y / WIDTH / HEIGHT], -1) * 255
).astype(np.uint8)
RGB = Image.fromarray(SCENE)
GRAY = RGB.convert("L")
DEEP = Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257)
CLEAR = RGB.convert("RGBA")
CLEAR.putalpha(Image.fromarray(np.where(X < WIDTH // 2, 255, 0).astype(np.uint8)))
BLUE = Image.fromarray(SCENE[..., ::-1].copy())


def turned(number: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = number
    return dict(exif=exif)


PAGES = dict(save_all=True, append_images=[BLUE])
IMAGES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "rgb.png": (RGB, {}),
    "gray.png": (GRAY, {}),
    "two_bits.png": (GRAY.quantize(4), dict(bits=2)),
    "one_bit.png": (RGB.convert("1"), {}),
    "palette.png": (RGB.convert("P"), {}),
    "clear_palette.png": (RGB.convert("P"), dict(transparency=3)),
    "clear_gray.png": (GRAY, dict(transparency=90)),
    "clear_rgb.png": (RGB, dict(transparency=(0, 0, 255))),
    "rgba.png": (CLEAR, {}),
    "la.png": (CLEAR.convert("LA"), {}),
    "sixteen.png": (DEEP, {}),
    "turned.png": (RGB, turned(6)),
    "frames.png": (RGB, PAGES),
    "rgb.jpg": (RGB, dict(quality=90)),
    "gray.jpg": (GRAY, {}),
    "progressive.jpg": (RGB, dict(progressive=True, subsampling=0)),
    "cmyk.jpg": (RGB.convert("CMYK"), {}),
    **{f"turned_{n}.jpg": (RGB, turned(n)) for n in (2, 3, 5, 6, 8)},
    "rgb.bmp": (RGB, {}),
    "one_bit.bmp": (RGB.convert("1"), {}),
    "rgb.ppm": (RGB, {}),
    "sixteen.pgm": (DEEP, {}),
    "rgb.tif": (RGB, {}),
    "lzw.tif": (RGB, dict(compression="tiff_lzw")),
    "cmyk.tif": (RGB.convert("CMYK"), {}),
    "one_bit.tif": (RGB.convert("1"), {}),
    "rgba.tif": (CLEAR, {}),
    "sixteen.tif": (DEEP, {}),
    "pages.tif": (RGB, PAGES),
    "rgb.gif": (RGB, {}),
    "frames.gif": (RGB, PAGES),
    "lossless.webp": (RGB, dict(lossless=True)),
    "rgba.webp": (CLEAR, dict(lossless=True)),
    "turned.webp": (RGB, turned(8)),
    "float.tif": (Image.fromarray(np.float32(GRAY) / 255), {}),
    "int.tif": (Image.fromarray(np.asarray(GRAY).astype(np.int32)), {}),
    "lab.tif": (Image.frombytes("LAB", RGB.size, RGB.tobytes()), {}),
}
REFUSED = {"float.tif": "float", "int.tif": "32-bit"}


@pytest.fixture(scope="module")
def doors() -> dict[str, Callable[[str], np.ndarray]]:
    """The ways on which a file becomes an array (H, W, 3) uint8 RGB."""
    path = ROOT / "docs/onnx_client.py"
    spec = importlib.util.spec_from_file_location("onnx_client", path)
    assert spec and spec.loader
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    step = TRANSFORMS.build(dict(type="LoadImageFromFile"))  # of all configs
    return {
        "pipeline": lambda path: step(dict(img_path=path))["img"][..., ::-1],
        "interface": as_rgb,
        "search": read_image,
        "client": client.read,
    }


@pytest.mark.parametrize("name", IMAGES)
def test_a_file_has_the_same_pixels_everywhere_or_none(
    tmp_path: Path, name: str, doors: dict[str, Callable[[str], np.ndarray]]
) -> None:
    image, options = IMAGES[name]
    path = str(tmp_path / name)
    image.save(path, **options)
    if name in REFUSED:
        for door in doors.values():
            with pytest.raises((OSError, ValueError), match=REFUSED[name]) as refusal:
                door(path)
            assert name in str(refusal.value) or door is doors["client"]
        return
    seen = {key: door(path) for key, door in doors.items()}
    for pixels in seen.values():
        assert pixels.dtype == np.uint8 and pixels.std() > 10
        assert np.array_equal(pixels, seen["search"])
    # and those of PIL, where nothing is to be decided
    if not any(word in name for word in ("clear", "rgba", "la.", "sixteen", "turned")):
        with Image.open(path) as file:
            assert np.array_equal(seen["search"], np.array(file.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_opencv_look_like_eight(tmp_path: Path, channels: int) -> None:
    pixels = SCENE[..., :channels]
    cv2.imwrite(str(tmp_path / "a.png"), pixels.astype(np.uint16) * 257)
    image = read_image(tmp_path / "a.png")[..., ::-1]
    assert np.array_equal(image, np.broadcast_to(pixels, image.shape))


def test_what_is_odd_about_a_file_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(reader, "_said", set())
    monkeypatch.setattr(
        reader, "print_log", lambda text, logger, level: said.append(text)
    )
    # 12 bits in a file of 16, pages; and a file that has really 16
    dark = Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 16)
    for name, image, more in (
        ("sixteen.png", DEEP, {}),
        ("dark.png", dark, {}),
        ("dark2.png", dark, {}),
        ("pages.tif", RGB, PAGES),
        ("rgb.jpg", RGB, {}),
    ):
        image.save(tmp_path / name, **more)
        read_image(tmp_path / name)
    assert len(said) == 2, said
    assert "dark.png" in said[0] and "12 bits, multiply them by 16" in said[0]
    assert "pages.tif" in said[1] and "the first is read" in said[1]


def test_a_pipeline_names_a_broken_file(tmp_path: Path) -> None:
    step = TRANSFORMS.build(dict(type="LoadImageFromFile"))
    RGB.resize((640, 480)).save(tmp_path / "half.jpg")
    half = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    for name in ("half.jpg", "missing.jpg"):
        with pytest.raises(OSError, match=name):
            step(dict(img_path=str(tmp_path / name)))


def test_mm_s_other_ways_of_loading_stay(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.jpg")
    results = dict(img_path=str(tmp_path / "a.jpg"))
    gray = TRANSFORMS.build(dict(type="LoadImageFromFile", color_type="grayscale"))
    assert gray(dict(results))["img"].shape == (HEIGHT, WIDTH)
    floats = TRANSFORMS.build(dict(type="LoadImageFromFile", to_float32=True))
    image = floats(dict(results))["img"]
    assert image.dtype == np.float32
    assert np.array_equal(image, mmcv.imread(results["img_path"]))


def test_plain_jpegs_are_read_without_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most photos; any header of which the pixels could depend asks PIL."""
    files = {}
    for name in ("rgb.jpg", "gray.jpg", "progressive.jpg", "cmyk.jpg", "turned_6.jpg"):
        image, options = IMAGES[name]
        image.save(buffer := io.BytesIO(), "JPEG", **options)
        files[name] = buffer.getvalue()
    asked = []
    opened = Image.open

    def spy(file: Any) -> Image.Image:
        asked.append(name)
        return opened(file)

    monkeypatch.setattr(Image, "open", spy)
    for name, data in files.items():
        decode_image(data, name)
    assert asked == ["cmyk.jpg", "turned_6.jpg"]


def test_the_same_file_gets_the_same_message(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(OSError, match="a.png: no format that PIL knows$"):
        read_image(tmp_path / "a.png")
