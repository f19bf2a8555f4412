"""The teacher's embeddings on disk.

A store is a folder: ``store.json`` says what was embedded, by which CLIP, of which data
set; shards of a fixed number of images hold the vectors of each image, as it is and
mirrored. ``tools/cache_embeddings.py`` fills a store.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..border import path_of, taken_apart, whole_number
from ..files import write_whole
from ..vectors import VectorFile, check_units, write_vectors

FORMAT = 2
SHARD = "teacher's store"


class StoreMismatch(ValueError):
    """A store of another teacher, data set or pipeline."""


class Record(NamedTuple):
    """What is stored of one image; the first axis is (as it is, mirrored).

    Attributes:
        boxes: (M, 4) xyxy in pixels of the pipeline's image, not mirrored.
        scales: (M,) index into the manifest's ``scales``.
        stored: (M,) bool, boxes found by an earlier student.
        crops: (2, M, D) unit vectors, float16.
        image: (2, D) unit vectors, float16.
        dense: (2, D, h, w) unit vectors, float16, or None.
        captions: caption -> (D,) unit vector, float16.
    """

    boxes: Tensor
    scales: Tensor
    stored: Tensor
    crops: Tensor
    image: Tensor
    dense: Tensor | None
    captions: dict[str, Tensor]


class EmbeddingStore:
    """A folder of shards.

    Args:
        folder: the store.
        manifest: what it must hold; None takes what it does.

    Raises:
        FileNotFoundError, StoreMismatch: there is none, or one of something else.
    """

    def __init__(
        self, folder: str | Path, manifest: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = path_of("a store", folder).expanduser()
        path = self.folder / "store.json"
        # a manifest begins a store where there is none
        if not path.is_file():
            if manifest is None:
                raise FileNotFoundError(
                    f"{self.folder} holds no embeddings: make them with "
                    "python tools/cache_embeddings.py CONFIG"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(file.suffix != ".tmp" for file in self.folder.iterdir()):
                raise StoreMismatch(
                    f"{self.folder} is not empty and holds no store: name another one."
                )
            write_whole(path, json.dumps(manifest, indent=1).encode())
        try:
            self.manifest: dict[str, Any] = dict(json.loads(path.read_text()))
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete the store, and make it again."
            ) from error
        # an older store must be of the same
        if manifest is not None:
            self.check(**manifest)

    def check(self, **wanted: Any) -> None:
        """Raise StoreMismatch where the manifest differs in what is wanted."""
        # as JSON has it: tuples are lists
        wanted = json.loads(json.dumps(wanted))
        for key, value in wanted.items():
            if self.manifest.get(key) != value:
                held = json.dumps(self.manifest.get(key))
                raise StoreMismatch(
                    f"the store {self.folder} is of another {key}: it holds "
                    f"{held:.300}, wanted is {json.dumps(value):.300}. Name another "
                    "store, or delete this one and make it again with "
                    "tools/cache_embeddings.py."
                )

    @property
    def num_shards(self) -> int:
        """Shards of a finished store."""
        found = (self.manifest.get(key) for key in ("images", "shard_size"))
        images, size = (whole_number(f"{self.folder}: its number", n) for n in found)
        return -(-images // size)

    def shard_file(self, number: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / f"shard-{number:05d}.safetensors"

    def write_shard(
        self, number: int, ids: Sequence[Any], records: Sequence[Record]
    ) -> None:
        """Write the records of a shard's images, atomically."""
        # images one after the other; `ends` says where the rows of each end
        vectors = [v for r in records for v in r.captions.values()]
        tensors = dict(
            ends=torch.tensor([len(r.boxes) for r in records]).cumsum(0),
            boxes=torch.cat([r.boxes for r in records]),
            scales=torch.cat([r.scales for r in records]).to(torch.uint8),
            stored=torch.cat([r.stored for r in records]).to(torch.uint8),
            crops=torch.cat([r.crops for r in records], 1).half(),
            image=torch.stack([r.image for r in records], 1).half(),
        )
        # what only some stores hold
        if records[0].dense is not None:
            dense = [r.dense for r in records if r.dense is not None]
            tensors["dense"] = torch.stack(dense, 1).half()
        # of all images, too
        if vectors:
            tensors["captions"] = torch.stack(vectors).half()
        # what the rows belong to
        captions = [list(r.captions) for r in records]
        about = dict(shard=number, ids=list(ids), captions=captions)
        write_vectors(self.shard_file(number), SHARD, tensors, about)

    def is_whole(self, number: int) -> bool:
        """Whether a shard is there and its content is what was written."""
        # reading it compares the checksum
        try:
            self._images_of(number)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def check_complete(self) -> None:
        """Raise FileNotFoundError with the first shard that is missing."""
        for number in range(self.num_shards):
            path = self.shard_file(number)
            if not path.is_file():
                raise FileNotFoundError(
                    f"{self.folder} has no {path.name}: finish the store with "
                    "tools/cache_embeddings.py, which goes on where it stopped."
                )

    @cached_property
    def _images(self) -> dict[Any, "StoredImage"]:
        """Image id -> where its vectors are."""
        images: dict[Any, StoredImage] = {}
        # boxes are read now, embeddings when a batch asks for them
        self.check_complete()
        for number in range(self.num_shards):
            try:
                images.update(self._images_of(number))
            except ValueError as error:
                raise ValueError(
                    f"{error}: tools/cache_embeddings.py finds and renews damaged "
                    "shards."
                ) from error
        return images

    def _images_of(self, number: int) -> dict[Any, "StoredImage"]:
        """Image id -> its part of a shard, all of which is read once and compared."""
        file = VectorFile(self.shard_file(number), SHARD)
        with taken_apart(f"{file.path} is damaged"):
            return dict(self._parts_of(file, number))

    def _parts_of(
        self, file: VectorFile, number: int
    ) -> Iterator[tuple[Any, "StoredImage"]]:
        about, tensors = file.metadata, file.tensors()
        if about["shard"] != number:
            raise ValueError(f"it is shard {about['shard']}")
        ids, ends, rows = about["ids"], tensors["ends"].tolist(), len(tensors["boxes"])
        if ends != sorted(ends) or ends[-1] != rows or len(ids) != len(ends):
            raise ValueError("its rows are not those of its images")
        for name, each in (("crops", rows), ("image", len(ids))):
            check_units(tensors[name].flatten(0, 1), 2 * each, name)
        if number_of_captions := sum(map(len, about["captions"])):
            check_units(tensors["captions"], number_of_captions, "captions")
        # rows of an image's crops and captions follow those of the image before
        begin = first_caption = 0
        kept = [tensors[name] for name in ("boxes", "scales", "stored")]
        for place, (image, captions, end) in enumerate(
            zip(ids, about["captions"], ends, strict=True)
        ):
            boxes, scales, stored = (tensor[begin:end] for tensor in kept)
            yield image, StoredImage(
                file, place, begin, boxes, scales, stored.bool(), captions,
                first_caption,
            )  # fmt: skip
            begin, first_caption = end, first_caption + len(captions)

    def __getitem__(self, image_id: Any) -> "StoredImage":
        """An image's part of the store; KeyError where there is none."""
        if image_id not in self._images:
            raise KeyError(f"{self.folder} holds no image {image_id!r}")
        return self._images[image_id]


@dataclass(frozen=True)
class StoredImage:
    """An image's part of a shard; vectors are read when asked for."""

    file: VectorFile
    # of the image among those of the shard; of its first crop among all crops
    place: int
    begin: int
    # see Record
    boxes: Tensor
    scales: Tensor
    stored: Tensor
    captions: list[str]
    # of its first caption among all of the shard
    first_caption: int

    def crops(self, mirrored: int) -> Tensor:
        """(M, D) float16."""
        rows = slice(self.begin, self.begin + len(self.boxes))
        return self.file.rows("crops", mirrored, rows)

    def whole(self, name: str, mirrored: int) -> Tensor:
        """``image``, (D,), or ``dense``, (D, h, w): float16."""
        return self.file.rows(name, mirrored, self.place)

    def caption(self, text: str) -> Tensor:
        """(D,) float16 of one of its captions."""
        row = self.first_caption + self.captions.index(text)
        return self.file.rows("captions", row)
