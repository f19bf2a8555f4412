"""What is given to a detector: files, folders, shards, arrays, videos, a camera."""

import csv
import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..border import path_of, taken_apart
from ..reader import read_image, to_rgb
from .images import check_array, image_files, natural_order
from .stores import (
    Members,
    StoredImage,
    is_address,
    is_shard,
    list_stored,
    of_list,
    read_bytes,
)
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
        stored: the file, if it is in an object store or in a shard.
        pixels: (H, W, 3) uint8 RGB, of an image in memory.
        camera: its number.
    """

    name: str
    path: Path | None = None
    stored: StoredImage | None = None
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
        elif self.stored is not None:
            yield None, self.stored.read()
        elif self.camera is not None:
            yield from read_frames(self.camera, every)
        elif self.path is not None and self.is_video:
            yield from read_frames(self.path, every)
        elif self.path is not None:
            yield None, read_image(self.path)

    @property
    def file(self) -> str | None:
        """Which file it is: its whole path, or its address; None: of no file."""
        if self.stored is not None:
            return self.stored.address
        return None if self.path is None else os.path.abspath(self.path)

    def stamp(self) -> tuple[str, int, int] | None:
        """Which file it is, its bytes and time of change; None: it is gone by now."""
        if self.stored is not None:
            return self.stored.stamp()
        try:
            about = os.stat(str(self.file))
        except OSError:
            return None
        return str(self.file), about.st_size, about.st_mtime_ns

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
            images and videos; a ``.tar`` shard, whose members are taken, or a glob of
            shards; an address that fsspec knows, of a file, a folder or a glob,
            ``s3://bucket/photos``; a list in a file, CSV or Parquet, whose column
            ``path`` names files, relative ones below the list's folder, shards and
            addresses; the number of a camera; a PIL image; an array (H, W, 3) uint8 BGR
            or (H, W), as mm reads images.

    Raises:
        FileNotFoundError: there is no such file, or a folder or glob has no image;
            names it. Files of a list are not looked for.
        ImportError: a list in Parquet, and pyarrow is not installed; an address, and
            fsspec has no package for it.
        OSError: an object store cannot be reached, a shard is damaged.
        ValueError: an address of the web, a list without paths, a camera's number that
            is negative or too large, or something else that is no input.
    """
    given = [*inputs] if isinstance(inputs, (list, tuple)) else [inputs]
    if not given:
        raise ValueError("no inputs: expected at least one image")
    # files of all inputs; a folder counts as the place of its files
    sources: list[ImageSource] = []
    folders: list[str | PurePath] = []
    for item in given:
        if isinstance(item, ImageSource):
            sources.append(item)
        elif isinstance(item, (str, Path)):
            own = [*_of_files(item)]
            sources += own
            folders += (
                [item] if Path(item).is_dir() else [_place(s).parent for s in own]
            )
        else:
            sources.append(_in_memory(item, len(sources)))
    # files are named by their paths below the folder that all share
    root = os.path.commonpath([os.path.abspath(f) for f in folders]) if folders else ""
    return [
        replace(s, name=Path(os.path.relpath(_place(s), root)).as_posix())
        if s.file and not s.name
        else s
        for s in sources
    ]


def _place(source: ImageSource) -> PurePath:
    """Where a file is; of one in a store or in a shard as if it were a path."""
    return source.stored.place if source.stored else PurePath(str(source.path))


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


def _listed(given: str) -> Iterator[ImageSource]:
    """The files that a list names, a file itself or an address."""
    remote = is_address(given)
    data = read_bytes(given) if remote else Path(given).read_bytes()
    with taken_apart(f"list {given}: expected a column 'path' of files"):
        if given.lower().endswith(".csv"):
            table = io.StringIO(data.decode("utf-8-sig"), newline="")
            names = [row["path"] for row in csv.DictReader(table)]
        else:
            try:
                from pyarrow import BufferReader, parquet
            except ImportError as error:
                raise ImportError(
                    "lists in Parquet need pip install 'kdeov_mm[scale]'"
                ) from error
            columns = parquet.read_table(BufferReader(data), columns=["path"])
            names = columns["path"].to_pylist()
        paths = [path_of("a path", name) for name in names]
    folder = given.rpartition("/")[0]
    known: Members = {}
    for name, path in zip(names, paths):
        if remote and not is_address(name):
            name = f"{folder}/{name}"
        if is_address(name):
            images = of_list(name, known)
        elif is_shard(name):
            images = list_stored(str(Path(given).parent / path))
        else:
            yield ImageSource("", Path(given).parent / path)
            continue
        yield from (ImageSource("", stored=image) for image in images)


def _of_files(given: str | Path) -> Iterable[ImageSource]:
    """The files of a path, a glob or an address, without names yet."""
    path = path_of("an input", given)  # Path takes an empty one for the current folder
    if path.is_dir():
        if files := natural_order(image_files(path)):
            return (ImageSource("", file) for file in files)
        raise FileNotFoundError(f"folder {given} has no images {IMG_EXTENSIONS}")
    # a name may have the characters of a glob, so a file comes first
    away = is_address(str(given))
    if (away or path.is_file()) and path.suffix.lower() in LISTS:
        return _listed(str(given))
    if away or is_shard(str(given)):
        return (ImageSource("", stored=image) for image in list_stored(str(given)))
    if path.is_file():
        return [ImageSource("", path)]
    if not glob.has_magic(str(given)):
        raise FileNotFoundError(f"there is no file or folder {given}")
    # of a glob's matches only images and videos
    known = (*IMG_EXTENSIONS, *VIDEO_EXTENSIONS)
    found = map(Path, glob.glob(str(given), recursive=True))
    files = [p for p in found if p.suffix.lower() in known and p.is_file()]
    if not files:
        raise FileNotFoundError(f"the glob {given} matches no image and no video")
    return (ImageSource("", file) for file in natural_order(files))
