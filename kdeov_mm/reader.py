"""Image files to pixels: the one reader of training, tests, inference and search.

What a file of more than 8 bits, of several pages, or with transparency looks like is
decided here alone. ``docs/onnx_client.py``, which needs no package of ours, has the
same rules.
"""

import io
import logging
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import print_log
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .border import path_of

# what PIL raises for a file that is no image, or a damaged one: almost anything
BROKEN = Exception
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # of files that are whole
_said: set[str] = set()  # by this process


def read_image(path: str | Path) -> np.ndarray:
    """Read any image file as (H, W, 3) uint8 RGB.

    Gray, palette, CMYK and transparent images are converted (transparency on white), of
    16 bits the upper 8 are taken, EXIF orientation is applied, and of several pages or
    frames the first is read.

    Raises:
        OSError: the file is missing, no image, ends early, or has floats or integers of
            32 bits, whose black and white are not known; names it.
    """
    # a pipe would be waited for
    if not path_of("an image", path).is_file():
        raise FileNotFoundError(f"image {path} does not exist, or is no file")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"cannot read image {path}: {error}") from error
    return image_of(data, path)


def image_of(data: bytes, name: str | Path) -> np.ndarray:
    """The content of an image file as :func:`read_image` gives it.

    Raises:
        OSError: see there; names it.
    """
    try:
        return decode_image(data, name)
    except UnidentifiedImageError as error:
        # what it says of bytes is where they are in memory
        raise OSError(f"cannot read image {name}: no format that PIL knows") from error
    except BROKEN as error:
        raise OSError(f"cannot read image {name}: {error}") from error


def decode_image(data: bytes, name: str | Path, order: str = "RGB") -> np.ndarray:
    """The content of an image file as (H, W, 3) uint8; see :func:`read_image`.

    Args:
        data: the file's bytes.
        name: of the file, for what is said about it.
        order: of the channels, RGB or BGR.

    Raises:
        Exception: of many kinds, as PIL; or there is no rule for its pixels.
    """
    # OpenCV gives the same pixels of these, in two thirds of the time
    pixels = _by_opencv(data) if _is_plain_jpeg(data) else None
    if pixels is None:
        with Image.open(io.BytesIO(data)) as file:
            if _is_plain(file, data):
                pixels = _by_opencv(data)
            if pixels is None:
                rgb = to_rgb(file, name)
                return rgb if order == "RGB" else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if order == "RGB" else pixels


def _by_opencv(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 BGR as it is in the file; None where OpenCV finds no image."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _is_plain_jpeg(data: bytes) -> bool:
    """A JPEG as :func:`_is_plain` takes it, and no more: known without opening it."""
    if not (data.startswith(b"\xff\xd8") and data.endswith(ENDS["JPEG"])):
        return False
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        # EXIF and XMP may turn it, Adobe's are of other colours, others have pages
        if 0xE1 <= kind <= 0xEF:
            return False
        if kind in (0xC0, 0xC1, 0xC2):  # the frame: bits, height, width, channels
            return data[at + 4] == 8 and data[at + 9] in (1, 3)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _is_plain(file: Image.Image, data: bytes) -> bool:
    """A whole JPEG or PNG of 8 bits, gray or RGB, that is neither turned nor clear."""
    end = ENDS.get(file.format or "")
    if end is None or not data.endswith(end) or file.mode not in ("L", "RGB"):
        return False
    # a PNG's header has the bits of a channel
    if file.format == "PNG" and (data[24] != 8 or "transparency" in file.info):
        return False
    return file.getexif().get(ExifTags.Base.Orientation, 1) == 1


def to_rgb(image: Image.Image, name: str | Path = "an image") -> np.ndarray:
    """Any PIL image as (H, W, 3) uint8 RGB; see :func:`read_image`.

    Raises:
        ValueError: floats, or integers of 32 bits; or it has no pixels.
    """
    if not all(image.size):
        raise ValueError(f"expected an image with pixels, got one of size {image.size}")
    # PIL would cut them at 0 and 255; those of a PPM are of 16 bits
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "float" if image.mode == "F" else "32-bit integer"
        raise ValueError(
            f"{kind} pixels, of which it is not known what is black and what is white: "
            "save it with 8 or 16 bits"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):
        _say_once("pages", f"{name} has several pages or frames: the first is read.")
    image = ImageOps.exif_transpose(image)
    # 16 bits of gray, which PIL would clip at 255
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.float64)
        _say_if_dark(int(gray.max(initial=0)), name)
        image = Image.fromarray((gray / 257).clip(0, 255).astype(np.uint8))
    # what is transparent shows a white page
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _say_if_dark(highest: int, name: str | Path) -> None:
    """Cameras write 10, 12 or 14 bits into files of 16: almost black."""
    if 0 < highest < 2**14:
        bits = highest.bit_length()
        _say_once(
            "dark",
            f"{name}: no value is above {highest} of 65535, so it is almost black. If "
            f"its pixels are of {bits} bits, multiply them by {2 ** (16 - bits)}.",
        )


def _say_once(what: str, message: str) -> None:
    """Log something of the first file it is true of, not of each."""
    if what not in _said:
        _said.add(what)
        more = "Other files like it are not named."
        print_log(f"{message} {more}", "current", logging.WARNING)
