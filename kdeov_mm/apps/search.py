"""A folder of images, found by words: embeddings on disk, nearest ones by faiss."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..border import items_of, path_of, taken_apart, whole_number
from ..files import claim, locked
from ..inference.api import KDEOV, normalisation
from ..inference.images import image_files, in_batches
from ..reader import read_image
from ..vectors import check_units, read_vectors, write_vectors
from ..vocabulary import check_words

SHARD = 256  # images between two writes: what a killed run loses, at most
KIND = "image index"  # of files of vectors
Stamp = tuple[int, int]  # of a file: size in bytes, time of change in ns


class Hit(NamedTuple):
    """An image that was found.

    Attributes:
        path: the file.
        score: its cosine to the words.
    """

    path: Path
    score: float


@dataclass(frozen=True)
class Entry:
    """An image of the index.

    Attributes:
        stamp: of the file, when it was read.
        vector: (D,) float32 unit vector; None where the file could not be read.
        error: why it could not.
    """

    stamp: Stamp
    vector: np.ndarray | None = None
    error: str | None = None


class ImageIndex:
    """The embeddings of a folder's images, kept on disk, searched exactly.

    What is embedded is written every 256 images, atomically, so a run that is killed
    is gone on with. :meth:`update` follows new, changed and removed files.

    Args:
        model: embeds images and words.
        folder: of images, with its subfolders.
        store: where the index is kept (default: ``work_dirs/search/``, a place for
            each folder and student).

    Raises:
        ImportError: faiss is not installed.
        NotADirectoryError: the folder is none.
        ValueError: the store is of another folder or student, or damaged.
    """

    def __init__(
        self, model: KDEOV, folder: str | Path, store: str | Path | None = None
    ) -> None:
        self.faiss = _faiss()
        self.model = model
        if not isinstance(model, KDEOV):
            raise ValueError(f"expected a KDEOV, got a {type(model).__name__}")
        self.folder = path_of("a folder of images", folder).resolve()
        if not self.folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder of images")
        # a place for each folder and student, which its head names
        metadata = dict(folder=str(self.folder), student=_student_hash(model))
        key = hashlib.sha256(json.dumps(metadata).encode()).hexdigest()[:12]
        default = Path("work_dirs/search") / f"{self.folder.name}-{key}"
        self.store = default if store is None else path_of("a store", store)
        advice = "name another place, or delete it."
        claim(self.store / "index.json", "index", metadata, advice)
        self.entries = self._stored()

    def _stored(self) -> dict[str, Entry]:
        """What is on disk; of an image in several parts, the last one counts."""
        entries: dict[str, Entry] = {}
        try:
            for part in self._parts():
                entries.update(_read_part(part))
        except FileNotFoundError:  # another process has put the parts together
            return self._stored()
        return entries

    def _parts(self) -> list[Path]:
        return sorted(self.store.glob("part-*.safetensors"))

    def update(self, progress: Callable[[Iterable], Iterable] = iter) -> dict[str, int]:
        """Make the index say what the folder holds.

        Args:
            progress: wraps the loop over new images, e.g. ``tqdm``.

        Returns:
            Numbers of images: ``added``, ``removed``, ``unreadable``, ``images``.

        Raises:
            BlockingIOError: another process is updating it.
        """
        with locked(self.store):
            # another process may have been here, so the disk is read again
            self.entries = self._stored()
            stamps = self._stamps()
            gone = [name for name in self.entries if name not in stamps]
            for name in gone:
                del self.entries[name]
            fresh = [
                name
                for name, stamp in stamps.items()
                if name not in self.entries or self.entries[name].stamp != stamp
            ]
            # what is embedded goes to disk from time to time
            for shard in in_batches(self._embedded(progress(fresh), stamps), SHARD):
                self.entries.update(shard)
                if len(shard) == SHARD:
                    self._write(dict(shard))
            # at the end all is put into one part, then the others can go
            if fresh or gone:
                parts = self._parts()
                self._write(self.entries)
                for part in parts:
                    part.unlink()
        self.__dict__.pop("_search", None)
        unreadable = sum(entry.vector is None for entry in self.entries.values())
        return dict(
            added=len(fresh),
            removed=len(gone),
            unreadable=unreadable,
            images=len(self.entries) - unreadable,
        )

    def _stamps(self) -> dict[str, Stamp]:
        """Names of all image files, below the folder, and their stamps."""
        stamps = {}
        for path in image_files(self.folder):
            try:
                status = path.stat()
                stamp = (status.st_size, status.st_mtime_ns)
            except OSError:  # gone by now, or a link to nothing
                stamp = (0, 0)
            stamps[str(path.relative_to(self.folder))] = stamp
        return stamps

    def _embedded(
        self, names: Iterable[str], stamps: dict[str, Stamp]
    ) -> Iterator[tuple[str, Entry]]:
        """Read files in threads, and embed a batch of them at once."""
        with ThreadPoolExecutor() as pool:
            for batch in in_batches(names, self.model.batch_size):
                # what cannot be read is an answer, too: it is not tried again
                read = [*pool.map(self._read, batch)]
                good = [image for image in read if isinstance(image, np.ndarray)]
                vectors = iter(self.model.encode_image(good).cpu().numpy())
                for name, image in zip(batch, read):
                    if isinstance(image, str):
                        yield name, Entry(stamps[name], error=image)
                    else:
                        yield name, Entry(stamps[name], next(vectors))

    def _read(self, name: str) -> np.ndarray | str:
        """An image, or why it cannot be read."""
        try:
            return read_image(self.folder / name)
        except OSError as error:
            return str(error)

    def _write(self, entries: dict[str, Entry]) -> None:
        """Another part."""
        # parts are numbered; what a later one says counts
        parts = self._parts()
        number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        # rows are those of readable files; of others there is the error
        good = {n: e.vector for n, e in entries.items() if e.vector is not None}
        matrix = np.stack([*good.values()]) if good else np.zeros((0, 0), np.float32)
        write_vectors(
            self.store / f"part-{number:08d}.safetensors",
            KIND,
            {"vectors": torch.from_numpy(matrix)},
            dict(
                names=[*good],
                stamps={name: entry.stamp for name, entry in entries.items()},
                errors={n: e.error for n, e in entries.items() if e.vector is None},
            ),
        )

    @cached_property
    def _search(self) -> tuple[list[str], Any]:
        """Names, and faiss's index of their vectors in the same order."""
        good = {n: e.vector for n, e in self.entries.items() if e.vector is not None}
        matrix = np.stack([*good.values()])
        index = self.faiss.IndexFlatIP(matrix.shape[1])
        index.add(matrix)
        return [*good], index

    def search(self, words: str | Tensor, top: int = 12) -> list[Hit]:
        """The images nearest to words.

        Args:
            words: what to look for; or its vector (D,).
            top: images, at most.

        Returns:
            Hits, the best first.

        Raises:
            ValueError: the index is empty, or there are no words.
        """
        if all(entry.vector is None for entry in self.entries.values()):
            raise ValueError(
                f"no image of {self.folder} is in the index: the folder has none that "
                "can be read, or update() was not called"
            )
        top = whole_number("top", top)
        names, index = self._search
        vector = self._vector(words, index.d)
        query = vector.detach().cpu().float().numpy()[None]  # (D,) -> (1, D)
        scores, rows = index.search(query, min(top, len(names)))
        return [
            Hit(self.folder / names[row], float(score))
            for score, row in zip(scores[0], rows[0])
        ]

    def _vector(self, words: str | Tensor, dims: int) -> Tensor:
        """What is looked for as a vector (D,)."""
        if isinstance(words, str):
            check_words([words])
            vector: Tensor = self.model.model.text_encoder([words])[0]
            if len(vector) != dims:
                raise ValueError(
                    f"{self.store} is damaged: its vectors have {dims} dimensions, "
                    f"those of words {len(vector)}. Delete it, and it is made anew."
                )
            return vector
        good = isinstance(words, Tensor) and words.is_floating_point()
        if not good or words.shape != (dims,) or not 0 < words.norm() < float("inf"):
            raise ValueError(
                f"expected words, or a vector ({dims},) of them, got {words!r:.80}"
            )
        return words


def contact_sheet(
    hits: Sequence[Hit], title: str, columns: int = 4, side: int = 200
) -> Image.Image:
    """Hits as an image: thumbnails, the best first, with score and file name."""
    # a title, then cells: a square and two lines of text
    margin, line = 8, 18
    rows = -(-len(hits) // columns)
    cell = side + 2 * line + margin
    size = (columns * (side + margin) + margin, rows * cell + line + 2 * margin)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.text((margin, margin), title, "black", font)
    for i, hit in enumerate(hits):
        left = margin + i % columns * (side + margin)
        top = line + 2 * margin + i // columns * cell
        try:
            image = Image.fromarray(read_image(hit.path))
        except OSError:  # removed since it was found
            image = Image.new("RGB", (side, side), "lightgray")
        # in the middle of a square, its longer side as long as the square's
        factor = side / max(image.size)
        width, height = (max(round(n * factor), 1) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(image, (left + (side - width) // 2, top + (side - height) // 2))
        name = hit.path.name if len(hit.path.name) < 28 else f"...{hit.path.name[-25:]}"
        caption = f"{i + 1}.  {hit.score:.3f}", name
        # rank and score, and below them the file
        for j, text in enumerate(caption):
            pen.text((left, top + side + 2 + j * line), text, "black", font)
    return sheet


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "search needs faiss: pip install faiss-cpu, or kdeov_mm[search]"
        ) from error
    return faiss


def _student_hash(model: KDEOV) -> str:
    """SHA-256 of what image embeddings depend on: weights and sizes of the input."""
    metadata = [model.sizes, normalisation(model.model.data_preprocessor)]
    digest = hashlib.sha256(str(metadata).encode())
    for name, value in sorted(model.model.state_dict().items()):
        if name.split(".")[0] in ("backbone", "neck", "global_head"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_part(path: Path) -> dict[str, Entry]:
    try:
        tensors, metadata = read_vectors(path, KIND)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and its images are embedded anew."
        ) from error
    with taken_apart(f"{path} is damaged, delete it, and its images are embedded anew"):
        # of no readable image there is no vector, and no dimension
        names = items_of("names", metadata["names"])
        if names:
            check_units(tensors["vectors"], len(names), path)
        vectors = dict(zip(names, tensors["vectors"].numpy()))
        entries = {
            name: Entry((stamp[0], stamp[1]), vectors.get(name), errors.get(name))
            for errors in [dict(metadata["errors"])]
            for name, stamp in metadata["stamps"].items()
        }
        if {*vectors} != {n for n, e in entries.items() if e.error is None}:
            raise ValueError("its names, stamps and errors are not of the same images")
        return entries
