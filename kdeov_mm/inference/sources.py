"""What is given to a detector: files, folders, globs, pictures, videos, a camera."""

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from mmengine.logging import print_log
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from .pictures import check_pixels, read_image, to_bgr

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True, eq=False)
class Source:
    """A picture, or a video of many; :func:`list_sources` makes them.

    Attributes:
        name: of its results, unique for each file: its path below the folder that all
            files of the call share, with ``/``; of a picture in memory its number.
        path: the file; None where there is none.
        pixels: (H, W, 3) uint8 BGR, of a picture in memory.
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

    def frames(self, every: int = 1) -> Iterator[tuple[int | None, np.ndarray]]:
        """Numbers and pixels (H, W, 3) uint8 BGR, one by one; a picture has no number.

        Args:
            every: of a video, one frame in so many.

        Raises:
            OSError: the file cannot be read, or the camera cannot be opened.
        """
        if self.pixels is not None:
            yield None, self.pixels
        elif self.is_video:
            yield from self._video_frames(every)
        elif self.path is not None:
            yield None, read_image(self.path)

    def _video_frames(self, every: int) -> Iterator[tuple[int, np.ndarray]]:
        capture, number = self._capture(), 0
        claimed = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        try:
            while capture.grab():
                if number % every == 0:  # only what is asked for is decoded
                    good, pixels = capture.retrieve()
                    if not good:
                        break
                    yield number, pixels
                number += 1
        finally:
            capture.release()
        if not number:
            raise OSError(
                f"cannot read video {self.path or self.name}: it has no frame"
            )
        if number < claimed:
            print_log(
                f"{self.path} has {number} frames that can be read, of {claimed}.",
                "current",
                level=logging.WARNING,
            )

    def _capture(self) -> cv2.VideoCapture:
        if self.path is not None and not self.path.is_file():
            raise FileNotFoundError(f"video {self.path} does not exist")
        capture = cv2.VideoCapture(
            str(self.path) if self.camera is None else self.camera
        )
        if not capture.isOpened():
            raise OSError(f"cannot read video {self.path or self.name}")
        return capture

    def video_info(self) -> tuple[float, int]:
        """Frames per second, and their number as the file claims; 0: it does not.

        Raises:
            OSError: the file cannot be read.
        """
        if self.camera is not None:  # it cannot be opened twice
            return 0.0, 0
        capture = self._capture()
        try:
            fps = capture.get(cv2.CAP_PROP_FPS)
            return fps, max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        finally:
            capture.release()


Input: TypeAlias = str | Path | int | np.ndarray | Image.Image | Source


def list_sources(inputs: Input | Sequence[Input]) -> list[Source]:
    """What is meant by inputs, in their order.

    Args:
        inputs: one, or a list of: a picture's or a video's file; a folder, whose
            pictures are taken with those of its subfolders, in natural order ("2.jpg"
            before "10.jpg"), and whose videos are not; a glob, ``**`` for any
            subfolders, of pictures and videos; the number of a camera; a PIL picture;
            an array (H, W, 3) uint8 BGR or (H, W), as mm reads pictures.

    Raises:
        FileNotFoundError: there is no such file, or a folder or glob has no picture;
            names it.
        ValueError: an address of the internet, or something else that is no input.
    """
    listed = [*inputs] if isinstance(inputs, (list, tuple)) else [inputs]
    if not listed:
        raise ValueError("no inputs: expected at least one picture")
    sources: list[Source] = []
    folders: list[str | Path] = []
    for given in listed:
        if isinstance(given, Source):
            sources.append(given)
        elif isinstance(given, (str, Path)):
            paths = _files(given)
            sources += [Source("", path) for path in paths]
            whole = Path(given).is_dir()
            folders += [given] if whole else [path.parent for path in paths]
        else:
            sources.append(_in_memory(given, len(sources)))
    root = os.path.commonpath([os.path.abspath(f) for f in folders]) if folders else ""
    return [
        replace(s, name=Path(os.path.relpath(s.path, root)).as_posix())
        if s.path and not s.name
        else s
        for s in sources
    ]


def _in_memory(given: Any, number: int) -> Source:
    if isinstance(given, int) and not isinstance(given, bool):
        return Source(f"camera {given}", camera=given)
    if isinstance(given, Image.Image):
        return Source(f"{number:08d}.jpg", pixels=to_bgr(given))
    if isinstance(given, np.ndarray):
        return Source(f"{number:08d}.jpg", pixels=check_pixels(given, "BGR"))
    raise ValueError(
        "an input is a file, a folder, a glob, the number of a camera, a PIL picture, "
        f"an array (H, W, 3), or a list of them; got a {type(given).__name__}"
    )


def _files(given: str | Path) -> list[Path]:
    """The files of a path or a glob."""
    path = Path(given)
    if path.is_dir():
        if files := natural_order(_pictures_below(path)):
            return files
        raise FileNotFoundError(f"folder {given} has no pictures {IMG_EXTENSIONS}")
    if path.is_file():
        return [path]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(given)):
        raise ValueError(
            f"{given} is an address of the internet, and this works offline: download "
            "it first, and give the file."
        )
    if glob.has_magic(str(given)):
        known = (*IMG_EXTENSIONS, *VIDEO_EXTENSIONS)
        found = map(Path, glob.glob(str(given), recursive=True))
        files = [p for p in found if p.suffix.lower() in known and p.is_file()]
        if files:
            return natural_order(files)
        raise FileNotFoundError(f"the glob {given} matches no picture and no video")
    raise FileNotFoundError(f"there is no file or folder {given}")


def _pictures_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for root, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS):
                yield Path(root, name)


def natural_order(paths: Iterator[Path] | Sequence[Path]) -> list[Path]:
    """Sorted, with the numbers in their names as numbers."""

    def key(path: Path) -> list[tuple[list[str | int], str]]:
        return [
            (
                [
                    int(piece) if i % 2 else piece.lower()
                    for i, piece in enumerate(re.split("([0-9]+)", part))
                ],
                part,
            )
            for part in path.parts
        ]

    return sorted(paths, key=key)
