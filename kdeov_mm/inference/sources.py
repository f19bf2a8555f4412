"""What is given to a detector: files, folders, globs, arrays, videos, a camera."""

import csv
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..border import path_of, taken_apart
from ..reader import read_image, to_rgb
from .images import check_array, image_files, natural_order
from .video import VIDEO_EXTENSIONS, VideoInfo, read_frames, video_info

LISTS = (".csv", ".parquet")  # of files
CAMERAS = 1000  # their numbers lie below


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Where images come from: one image, or a video of many; see :func:`list_sources`.

    Attributes:
        name: of its results, unique for each file: its path below the folder that all
            files of the call share, with ``/``; of an image in memory its number.
        path: the file; None where there is none.
        pixels: (H, W, 3) uint8 RGB, of an image in memory.
        camera: its number.
    """

    name: str
    path: Path | None = None
    pixels: np.ndarray | None = None
    camera: int | None = None

    @property
    def is_video(self) -> bool:
        """Whether it has frames: a video file or a camera."""
        return self.camera is not None or (
            self.path is not None and self.path.suffix.lower() in VIDEO_EXTENSIONS
        )

    def images(self, every: int = 1) -> Iterator[tuple[int | None, np.ndarray]]:
        """Frame numbers (None of a single image) and pixels (H, W, 3) uint8 RGB.

        Args:
            every: of a video, one frame in so many.

        Raises:
            OSError: the file cannot be read, or the camera cannot be opened.
        """
        if self.pixels is not None:
            yield None, self.pixels
        elif self.camera is not None:
            yield from read_frames(self.camera, every)
        elif self.path is not None and self.is_video:
            yield from read_frames(self.path, every)
        elif self.path is not None:
            yield None, read_image(self.path)

    def stamp(self) -> tuple[str, int, int] | None:
        """Which file it is, its bytes and time of change; None: it is gone by now."""
        path = Path(str(self.path)).absolute()
        try:
            about = path.stat()
        except OSError:
            return None
        return str(path), about.st_size, about.st_mtime_ns

    def video_info(self) -> VideoInfo:
        """Of a video; all unknown of a camera, which cannot be opened twice."""
        return VideoInfo(0.0, 0) if self.path is None else video_info(self.path)


Input: TypeAlias = str | Path | int | np.ndarray | Image.Image | ImageSource


def list_sources(inputs: Input | Sequence[Input]) -> list[ImageSource]:
    """What is meant by inputs, in their order.

    Args:
        inputs: one, or a list of: an image's or a video's file; a folder, whose images
            are taken with those of its subfolders, in natural order ("2.jpg" before
            "10.jpg"), and whose videos are not; a glob, ``**`` for any subfolders, of
            images and videos; a list in a file, CSV or Parquet, whose column ``path``
            names files, relative ones below the list's folder; the number of a camera;
            a PIL image; an array (H, W, 3) uint8 BGR or (H, W), as mm reads images.

    Raises:
        FileNotFoundError: there is no such file, or a folder or glob has no image;
            names it. Files of a list are not looked for.
        ImportError: a list in Parquet, and pyarrow is not installed.
        ValueError: an address of the internet, a list without paths, a camera's number
            that is negative or too large, or something else that is no input.
    """
    given = [*inputs] if isinstance(inputs, (list, tuple)) else [inputs]
    if not given:
        raise ValueError("no inputs: expected at least one image")
    # files of all inputs; a folder counts as the place of its files
    sources: list[ImageSource] = []
    folders: list[str | Path] = []
    for item in given:
        if isinstance(item, ImageSource):
            sources.append(item)
        elif isinstance(item, (str, Path)):
            paths = _files(item)
            sources += [ImageSource("", path) for path in paths]
            folders += (
                [item] if Path(item).is_dir() else [path.parent for path in paths]
            )
        else:
            sources.append(_in_memory(item, len(sources)))
    # files are named by their paths below the folder that all share
    root = os.path.commonpath([os.path.abspath(f) for f in folders]) if folders else ""
    return [
        replace(s, name=Path(os.path.relpath(s.path, root)).as_posix())
        if s.path and not s.name
        else s
        for s in sources
    ]


def _in_memory(item: Any, number: int) -> ImageSource:
    if isinstance(item, int) and not isinstance(item, bool):
        # OpenCV takes a negative one for any camera, and crashes where there is none
        if not 0 <= item < CAMERAS:
            raise ValueError(
                f"cameras have numbers from 0 to {CAMERAS - 1}, not {item}"
            )
        return ImageSource(f"camera {item}", camera=item)
    if isinstance(item, Image.Image):
        return ImageSource(f"{number:08d}.jpg", pixels=to_rgb(item))
    if isinstance(item, np.ndarray):
        # mm's arrays are BGR: the one change of order on an image's way in
        rgb = np.ascontiguousarray(check_array(item, "BGR")[..., ::-1])
        return ImageSource(f"{number:08d}.jpg", pixels=rgb)
    raise ValueError(
        "an input is a file, a folder, a glob, the number of a camera, a PIL image, "
        f"an array (H, W, 3), or a list of them; got a {type(item).__name__}"
    )


def _listed(path: Path) -> list[Path]:
    """The files that a list names."""
    with taken_apart(f"list {path}: expected a column 'path' of files"):
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                names = [row["path"] for row in csv.DictReader(file)]
        else:
            try:
                from pyarrow import parquet
            except ImportError as error:
                raise ImportError(
                    "lists in Parquet need pip install 'kdeov_mm[scale]'"
                ) from error
            names = parquet.read_table(path, columns=["path"])["path"].to_pylist()
        return [path.parent / path_of("a path", name) for name in names]


def _files(given: str | Path) -> list[Path]:
    """The files of a path or a glob."""
    path = path_of("an input", given)  # Path takes an empty one for the current folder
    if path.is_dir():
        if files := natural_order(image_files(path)):
            return files
        raise FileNotFoundError(f"folder {given} has no images {IMG_EXTENSIONS}")
    # a name may have the characters of a glob, so a file comes first
    if path.is_file():
        return _listed(path) if path.suffix.lower() in LISTS else [path]
    # neither OpenCV nor PIL is to load anything from the internet
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(given)):
        raise ValueError(
            f"{given} is an address of the internet, and this works offline: download "
            "it first, and give the file."
        )
    if not glob.has_magic(str(given)):
        raise FileNotFoundError(f"there is no file or folder {given}")
    # of a glob's matches only images and videos
    known = (*IMG_EXTENSIONS, *VIDEO_EXTENSIONS)
    found = map(Path, glob.glob(str(given), recursive=True))
    files = [p for p in found if p.suffix.lower() in known and p.is_file()]
    if not files:
        raise FileNotFoundError(f"the glob {given} matches no image and no video")
    return natural_order(files)
