"""A folder of images, found by words: embeddings on disk, nearest ones by faiss."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..files import locked, write_whole
from ..inference.api import KDEOV
from ..inference.pictures import read_image

SHARD = 256  # images between two writes: what a killed run loses, at most


@dataclass(frozen=True)
class Hit:
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
        stamp: size in bytes and time of change in ns, when it was read.
        vector: (D,) float32 unit vector; None where the file could not be read.
        error: why it could not.
    """

    stamp: tuple[int, int]
    vector: np.ndarray | None = None
    error: str | None = None


class ImageIndex:
    """The embeddings of a folder's images, kept on disk, searched exactly.

    What is embedded is written every 256 images, whole or not at all, so a run that is
    killed is gone on with. :meth:`update` follows new, changed and removed files.

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
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder of images")
        about = dict(folder=str(self.folder), student=_student_hash(model))
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
        default = Path("work_dirs/search") / f"{self.folder.name}-{key}"
        self.store = Path(store) if store else default
        self.store.mkdir(parents=True, exist_ok=True)
        manifest = self.store / "index.json"
        if not manifest.exists():
            if any(path.suffix != ".tmp" for path in self.store.iterdir()):
                raise ValueError(
                    f"{self.store} is not empty and holds no index: name another place."
                )
            write_whole(manifest, json.dumps(about, indent=1).encode())
        if (held := _read_json(manifest)) != about:
            raise ValueError(
                f"the index {self.store} is of {held}, asked for {about}: name another "
                "place, or delete it."
            )
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
            BlockingIOError: another process is at it.
        """
        with locked(self.store):
            self.entries = self._stored()  # another process may have been at it
            there = dict(self._files())
            gone = [name for name in self.entries if name not in there]
            for name in gone:
                del self.entries[name]
            fresh = [
                name
                for name, stamp in there.items()
                if name not in self.entries or self.entries[name].stamp != stamp
            ]
            shard: dict[str, Entry] = {}
            for name, entry in self._embedded(progress(fresh), there):
                shard[name] = entry
                if len(shard) == SHARD:
                    self._write(shard)
                    shard = {}
            self.entries.update(shard)
            if fresh or gone:  # all into one part, then the others can go
                parts = self._parts()
                self._write(self.entries)
                for part in parts:
                    part.unlink()
        self.__dict__.pop("_search", None)
        bad = sum(entry.vector is None for entry in self.entries.values())
        return dict(
            added=len(fresh),
            removed=len(gone),
            unreadable=bad,
            images=len(self.entries) - bad,
        )

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names below the folder, and stamps, of all image files."""
        for root, folders, names in os.walk(self.folder, onerror=_refuse):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(IMG_EXTENSIONS):
                    path = Path(root) / name
                    try:
                        about = path.stat()
                        stamp = (about.st_size, about.st_mtime_ns)
                    except OSError:  # gone by now, or a link to nothing
                        stamp = (0, 0)
                    yield str(path.relative_to(self.folder)), stamp

    def _embedded(
        self, names: Iterable[str], stamps: dict[str, tuple[int, int]]
    ) -> Iterator[tuple[str, Entry]]:
        """Read and embed files, a batch ahead of each other."""
        with ThreadPoolExecutor() as pool:
            for batch in _chunks(names, self.model.batch_size):
                read = [*pool.map(self._read, batch)]
                good = [picture for picture in read if isinstance(picture, np.ndarray)]
                vectors = iter(self.model.encode_image(good).cpu().numpy())
                for name, picture in zip(batch, read):
                    if isinstance(picture, str):
                        yield name, Entry(stamps[name], error=picture)
                    else:
                        yield name, Entry(stamps[name], next(vectors))

    def _read(self, name: str) -> np.ndarray | str:
        try:
            return np.ascontiguousarray(read_image(self.folder / name)[..., ::-1])
        except OSError as error:
            return str(error)

    def _write(self, entries: dict[str, Entry]) -> None:
        """Another part."""
        parts = self._parts()
        number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        self.entries.update(entries)
        good = {n: e for n, e in entries.items() if e.vector is not None}
        about = dict(
            names=[*good],
            stamps=[e.stamp for e in good.values()],
            unreadable={
                n: [e.stamp, e.error] for n, e in entries.items() if e.vector is None
            },
        )
        vectors = [e.vector for e in good.values() if e.vector is not None]
        matrix = np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
        data = save({"vectors": matrix}, {"about": json.dumps(about)})
        write_whole(self.store / f"part-{number:08d}.safetensors", data)

    @cached_property
    def _search(self) -> tuple[list[str], Any]:
        """Names, and faiss's index of their vectors in the same order."""
        good = [(n, e.vector) for n, e in self.entries.items() if e.vector is not None]
        names = [name for name, _ in good]
        index = self.faiss.IndexFlatIP(len(good[0][1]))
        index.add(np.stack([vector for _, vector in good]))
        return names, index

    def prepare(self) -> None:
        """Load what queries need, so that the first is as quick as the others."""
        self.search("image", 1)

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
        if not any(entry.vector is not None for entry in self.entries.values()):
            raise ValueError(
                f"no image of {self.folder} is in the index: the folder has none that "
                "can be read, or update() was not called"
            )
        vector = (
            self.model.model.text_encoder([words])[0]
            if isinstance(words, str)
            else words
        )
        names, index = self._search
        query = vector.detach().cpu().float().numpy()[None]
        scores, places = index.search(query, min(max(top, 1), len(names)))
        return [
            Hit(self.folder / names[place], float(score))
            for score, place in zip(scores[0], places[0])
        ]


def contact_sheet(
    hits: Sequence[Hit], title: str, columns: int = 4, side: int = 200
) -> Image.Image:
    """Hits as a picture: thumbnails, the best first, with score and file name."""
    margin, line = 8, 18
    rows = -(-len(hits) // columns)
    cell = side + 2 * line + margin
    sheet = Image.new(
        "RGB",
        (columns * (side + margin) + margin, rows * cell + line + 2 * margin),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((margin, margin), title, "black", font)
    for i, hit in enumerate(hits):
        left = margin + i % columns * (side + margin)
        top = line + 2 * margin + i // columns * cell
        try:
            picture = Image.fromarray(read_image(hit.path)[..., ::-1])
        except OSError:  # removed since it was found
            picture = Image.new("RGB", (side, side), "lightgray")
        factor = side / max(picture.size)
        size = [max(round(n * factor), 1) for n in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        sheet.paste(
            picture, (left + (side - size[0]) // 2, top + (side - size[1]) // 2)
        )
        name = hit.path.name if len(hit.path.name) < 28 else f"...{hit.path.name[-25:]}"
        for j, text in enumerate((f"{i + 1}.  {hit.score:.3f}", name)):
            draw.text((left, top + side + 2 + j * line), text, "black", font)
    return sheet


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "search needs faiss: pip install faiss-cpu, or kdeov_mm[search]"
        ) from error
    return faiss


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is not empty: its images are not forgotten."""
    raise error


def _student_hash(model: KDEOV) -> str:
    """SHA-256 of what image embeddings depend on: weights and sizes of the input."""
    look = model.model.data_preprocessor
    about = [model.sizes, look._channel_conversion]
    if look._enable_normalize:
        about += [look.mean.flatten().tolist(), look.std.flatten().tolist()]
    digest = hashlib.sha256(str(about).encode())
    for name, value in sorted(model.model.state_dict().items()):
        if name.split(".")[0] in ("backbone", "neck", "global_head"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_part(path: Path) -> dict[str, Entry]:
    try:
        with safe_open(str(path), framework="np") as file:
            about = json.loads((file.metadata() or {})["about"])
            matrix = file.get_tensor("vectors")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and its images are embedded anew."
        ) from error
    entries = {
        name: Entry((stamp[0], stamp[1]), vector)
        for name, stamp, vector in zip(about["names"], about["stamps"], matrix)
    }
    for name, (stamp, reason) in about["unreadable"].items():
        entries[name] = Entry((stamp[0], stamp[1]), error=reason)
    return entries


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete the index") from error


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
