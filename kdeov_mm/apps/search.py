"""Images, found by words: a table of their embeddings, kept by LanceDB."""

import glob
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from math import log2
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from ..border import path_of, taken_apart, whole_number
from ..files import LOCK, locked
from ..inference.api import KDEOV, normalisation
from ..inference.images import image_files, in_batches
from ..inference.sources import LISTS, ImageSource, list_sources
from ..inference.stores import is_address, is_shard
from ..vocabulary import check_words

TABLE = "images"
STAMP = ["path", "size", "mtime"]  # of a file: another one, and it is read again
SHARD, LARGEST = 256, 8192  # images between two writes, at least and at most
PAUSE = 5.0  # seconds between two writes, until there are as many as the largest
FRAGMENTS = 32  # small files of the table, at most, before they are put together
EXACT = 50_000  # images, at most, that are compared with every query
PROBES, REFINE = 96, 4  # of the index: partitions per query, candidates per hit
CACHE = 2**29  # bytes of the table that are kept in memory
KEPT = timedelta(hours=1)  # versions that a reader may still look at
Row: TypeAlias = dict[str, Any]  # of the table


class Hit(NamedTuple):
    """An image that was found, and its cosine to the words.

    Attributes:
        path: of its file; of one in a store or in a shard its address.
        score: from -1 to 1.
    """

    path: Path | str
    score: float

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(str(self.path).partition("::")[0]).name

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB; raises an OSError where it is gone."""
        (source,) = list_sources(self.path)
        ((_, image),) = source.images()
        return image


class ImageIndex:
    """The embeddings of images, kept in a table, searched by words.

    What is embedded is written every 256 images, or every five seconds where that is
    more, atomically, so a killed run continues.
    Up to 50,000 images are compared with every query; an IVF index is made of more.

    Args:
        model: embeds images and words.
        folder: of images, with its subfolders; or a glob, a list, shards or an address,
            as :func:`.list_sources` takes them, whose videos are left out.
        store: a folder, or an address such as ``s3://bucket/search`` (default: below
            ``work_dirs/search/``, a place for each folder and student).

    Attributes:
        name: the last part of the folder's.
        table: LanceDB's, a row per image: ``path``, below the folder, or whole where
            none was given, ``size`` in bytes, ``mtime``, ``width``, ``height``,
            ``error`` (null where the image was read), ``vector`` (D,), float16, of
            length 1 (null where it was not).

    Raises:
        ImportError: lancedb is not installed.
        NotADirectoryError: there is no such folder, and it is nothing else of these.
        ValueError: the store is of another folder or student, or damaged.
    """

    def __init__(
        self, model: KDEOV, folder: str | Path, store: str | Path | None = None
    ) -> None:
        self.lancedb, self.arrow = _lancedb()
        self.model = model
        if not isinstance(model, KDEOV):
            raise ValueError(f"expected a KDEOV, got a {type(model).__name__}")
        self.folder, self.place = _gallery(folder)
        self.name = Path(self.place).name
        # a place for each folder and student, which the table's schema names
        metadata = dict(folder=self.place, student=_student_hash(model))
        key = hashlib.sha256(json.dumps(metadata).encode()).hexdigest()[:12]
        kept = self.name if self.folder else re.sub(r"[^\w.-]", "_", self.name)
        default = Path("work_dirs/search") / f"{kept}-{key}"
        place = default if store is None else store
        self.remote = "://" in str(place)
        self.store = str(place if self.remote else path_of("a store", place))
        if not self.remote:
            _check_place(Path(self.store), self.place)
        self.schema = self._schema(metadata)
        self._broken = (
            f"{self.store} is of another folder of images or another student, or "
            "damaged: name another place, or delete it, and it is made anew"
        )
        with taken_apart(self._broken):
            session = self.lancedb.Session(CACHE, CACHE)
            newest = dict(read_consistency_interval=timedelta(0))  # others' writes, too
            database = self.lancedb.connect(self.store, session=session, **newest)
            # rows keep their ids, so an index outlives a compaction
            options = {"new_table_enable_stable_row_ids": "true"}
            self.table = database.create_table(
                TABLE, schema=self.schema, exist_ok=True, storage_options=options
            )

    def _schema(self, metadata: dict[str, str]) -> Any:
        """Columns of the table, and what its rows depend on."""
        arrow, dims = self.arrow, self.model.model.text_encoder.embed_dims
        text, number, time = arrow.string(), arrow.int64(), arrow.timestamp("ns")
        columns = dict(path=text, size=number, mtime=time, width=number, height=number)
        columns |= dict(error=text, vector=arrow.list_(arrow.float16(), dims))
        # names of folders need not be UTF-8
        about = {k: v.encode(errors="backslashreplace") for k, v in metadata.items()}
        return arrow.schema([*columns.items()], metadata=about)

    def update(
        self,
        progress: Callable[[Iterable], Iterable] = iter,
        embed: Callable[[Iterable[Row]], Iterable[Row]] | None = None,
    ) -> dict[str, int]:
        """Make the table say what the folder holds.

        Args:
            progress: wraps the loop over new images, e.g. ``tqdm``.
            embed: in place of :func:`embedded`, e.g. that of several workers
                (:func:`kdeov_mm.apps.bulk.embed_all`); its rows may come in any order.

        Returns:
            Numbers of images: ``added``, ``removed``, ``unreadable``, ``images``.

        Raises:
            BlockingIOError: another process of this machine is updating it.
        """
        with nullcontext() if self.remote else locked(Path(self.store)):
            # rows without a file, and files without a row of their time and size
            with taken_apart(self._broken):
                known = self.table.search().select(STAMP).to_batches().read_all()
            found, source_of = self._found(known.schema)
            gone, fresh = self._compared(known, found)
            for names in in_batches(gone, 1000):
                listed = ", ".join("'" + n.replace("'", "''") + "'" for n in names)
                self.table.delete(f"path IN ({listed})")
            # what is embedded goes to disk from time to time
            embed = embed or partial(embedded, self.model)
            todo = (dict(r, source=source_of(r["path"])) for r in progress(fresh))
            for shard in _shards(embed(todo)):
                self._write(shard)
            unreadable = self.table.count_rows("error IS NOT NULL")
            images = self.table.count_rows() - unreadable
            if images > EXACT:
                self._make_index(images)
        done = dict(added=len(fresh), removed=len(gone))
        return dict(done, unreadable=unreadable, images=images)

    def _found(self, schema: Any) -> tuple[Any, Callable[[str], ImageSource]]:
        """Names of all image files, and their stamps; what gives a name's source."""
        rows, sources = [], {}
        for file, source in self._listed():
            stamp = source.stamp() or ("", 0, 0)  # gone by now, or a link to nothing
            # a name that is not UTF-8 is a row that says that it is not found
            name = file.encode(errors="backslashreplace").decode()
            rows.append(dict(path=name, size=stamp[1], mtime=stamp[2]))
            if self.folder is None:
                sources[name] = source
        table = self.arrow.Table.from_pylist(rows, schema)
        if self.folder is None:
            return table, sources.__getitem__
        folder = self.folder
        return table, lambda name: ImageSource(name, folder / name)

    def _listed(self) -> Iterator[tuple[str, ImageSource]]:
        if self.folder is not None:
            for path in image_files(self.folder):
                yield str(path.relative_to(self.folder)), ImageSource("", path)
            return
        # one that is named twice is one image
        found = {str(s.file): s for s in list_sources(self.place) if not s.is_video}
        yield from found.items()

    def _compared(self, known: Any, found: Any) -> tuple[list[str], list[Row]]:
        """Names that are gone, and rows of new and changed files, by their names."""
        field = self.arrow.compute.field
        both = known.join(found, "path", join_type="full outer", right_suffix=" now")
        gone = both.filter(field("size now").is_null())["path"].to_pylist()
        changed = field("size").is_null()
        for name in STAMP[1:]:
            changed |= field(name) != field(f"{name} now")
        both = both.filter(changed & field("size now").is_valid()).sort_by("path")
        fresh = both.select(["path", "size now", "mtime now"]).rename_columns(STAMP)
        return gone, fresh.to_pylist()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Rows in the place of those of the same paths, as one version of the table."""
        data = self.arrow.Table.from_pylist(rows, self.schema)
        merge = self.table.merge_insert("path").when_matched_update_all()
        with taken_apart(self._broken):
            merge.when_not_matched_insert_all().execute(data, on_bad_vectors="null")
        if self.table.stats()["fragment_stats"]["num_small_fragments"] > FRAGMENTS:
            self.table.optimize(cleanup_older_than=KEPT)

    def _make_index(self, images: int) -> None:
        """An IVF index of some sqrt(images) / 2 partitions, where there is none."""
        partitions = 2 ** round(log2(images) / 2 - 1)
        name, title = f"ivf_{partitions}", f"search index of {images:,} vectors"
        known = [index.name for index in self.table.list_indices()]
        if name in known:
            return
        for other in known:  # for fewer images
            self.table.drop_index(other)
        # rows are found by their paths at every write; first, for a killed run makes
        # all of it again where the other is missing
        self.table.create_index("path", config=self.lancedb.index.BTree())
        config = self.lancedb.index.IvfSq("cosine", partitions, 10, sample_rate=64)
        # LanceDB does not say how far it is
        bar = tqdm(desc=title, bar_format="{desc}: {elapsed}")
        with bar, ThreadPoolExecutor(1) as pool:
            make = self.table.create_index
            making = pool.submit(make, "vector", config=config, name=name)
            while not wait([making], timeout=1).done:
                bar.update()
            making.result()
        # images of the table at random, as queries
        rows = np.random.default_rng(0).integers(images, size=16).tolist()
        found = self.table.take_offsets(rows).select(["vector"]).to_arrow()["vector"]
        shares = [
            len(self._nearest(v, 12).keys() & exact.keys()) / len(exact)
            for v in found.drop_null().to_pylist()
            for exact in [self._nearest(v, 12, exact=True)]
        ]
        tqdm.write(f"{title}: recall@12 {np.mean(shares):.3f} of exact search")

    def _nearest(
        self, query: Any, top: int, where: str | None = None, exact: bool = False
    ) -> dict[str, float]:
        """Paths of the rows nearest to a vector (D,), and their cosines, best first."""
        search = self.table.search(np.asarray(query), "vector").distance_type("cosine")
        search = search.nprobes(PROBES).refine_factor(REFINE).limit(top)
        search = search.select(["path", "_distance"])
        search = search if where is None else search.where(where)
        rows = (search.bypass_vector_index() if exact else search).to_arrow()
        if len(rows) < top and not exact:  # what a condition leaves may lie elsewhere
            return self._nearest(query, top, where, exact=True)
        return {p: 1 - d for p, d in zip(*(c.to_pylist() for c in rows.columns))}

    def search(
        self, words: str | Tensor, top: int = 12, where: str | None = None
    ) -> list[Hit]:
        """The images nearest to words.

        Args:
            words: what to look for; or its vector (D,).
            top: images, at most.
            where: images that are looked at: a condition in SQL on the columns of the
                table, e.g. ``"path LIKE '%2024%' AND width > 640"``.

        Returns:
            Hits, the best first.

        Raises:
            ValueError: the index is empty, there are no words, or no such condition.
        """
        top = whole_number("top", top)
        query = self._vector(words).detach().cpu().float()
        wrong = f"where {where!r}: no condition in SQL on {self.schema.names}"
        with taken_apart(self._broken if where is None else wrong):
            found = self._nearest(query, top, where)
        if not found and not self.table.count_rows("vector IS NOT NULL"):
            raise ValueError(
                f"no image of {self.place} is in the index: there is none that can be "
                "read, or update() was not called"
            )
        return [Hit(self._whole(path), score) for path, score in found.items()]

    def _whole(self, path: str) -> Path | str:
        """A row's path as it can be read from anywhere."""
        if self.folder is not None:
            return self.folder / path
        return path if is_address(path) else Path(path)

    def _vector(self, words: str | Tensor) -> Tensor:
        """What is looked for as a vector (D,)."""
        if isinstance(words, str):
            check_words([words])
            return self.model.model.text_encoder([words])[0]
        dims = self.schema.field("vector").type.list_size
        good = isinstance(words, Tensor) and words.is_floating_point()
        if not good or words.shape != (dims,) or not 0 < words.norm() < float("inf"):
            raise ValueError(
                f"expected words, or a vector ({dims},) of them, got {words!r:.80}"
            )
        return words


def embedded(model: KDEOV, rows: Iterable[Row]) -> Iterator[Row]:
    """Read files in threads, and embed a batch of them at once.

    Args:
        model: embeds.
        rows: of images, each with its ``source``, an :class:`.ImageSource`.

    Yields:
        The rows with ``width``, ``height`` and ``vector``, or with their ``error``, and
        without the source.
    """

    def read(row: Row) -> np.ndarray | str:
        try:
            ((_, image),) = row.pop("source").images()
            return image
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for batch in in_batches(rows, model.batch_size):
            # what cannot be read is an answer, too: it is not tried again
            images = [*pool.map(read, batch)]
            good = [image for image in images if isinstance(image, np.ndarray)]
            vectors = iter(model.encode_image(good).half().cpu().numpy())
            for row, image in zip(batch, images):
                if isinstance(image, str):
                    yield dict(row, error=image)
                else:
                    row["height"], row["width"], _ = image.shape
                    yield dict(row, vector=next(vectors))


def _shards(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows to write at once: the table has few versions, and a kill loses little."""
    shard, begun = [], time.monotonic()
    for row in rows:
        shard.append(row)
        due = len(shard) >= SHARD and time.monotonic() - begun >= PAUSE
        if due or len(shard) >= LARGEST:
            yield shard
            shard, begun = [], time.monotonic()
    if shard:
        yield shard


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
            image = Image.fromarray(hit.read())
        except OSError:  # removed since it was found
            image = Image.new("RGB", (side, side), "lightgray")
        # in the middle of a square, its longer side as long as the square's
        factor = side / max(image.size)
        width, height = (max(round(n * factor), 1) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(image, (left + (side - width) // 2, top + (side - height) // 2))
        name = hit.name if len(hit.name) < 28 else f"...{hit.name[-25:]}"
        caption = f"{i + 1}.  {hit.score:.3f}", name
        # rank and score, and below them the file
        for j, text in enumerate(caption):
            pen.text((left, top + side + 2 + j * line), text, "black", font)
    return sheet


def _lancedb() -> tuple[Any, Any]:
    try:
        import lancedb.index
        import pyarrow.compute
    except ImportError as error:
        raise ImportError("search needs pip install 'kdeov_mm[search]'") from error
    return lancedb, pyarrow


def _gallery(given: str | Path) -> tuple[Path | None, str]:
    """A folder of images, if it is one, and how it, or anything else, is named."""
    path, text = path_of("a folder of images", given), str(given)
    if path.is_dir():
        return path.resolve(), str(path.resolve())
    if is_address(text):
        return None, text
    several = is_shard(text) or path.suffix.lower() in LISTS or glob.has_magic(text)
    if not several:
        raise NotADirectoryError(f"{given} is no folder of images")
    return None, str(path.absolute())


def _check_place(place: Path, folder: str) -> None:
    """Leave a folder of other things alone."""
    names = {path.name for path in place.iterdir()} if place.is_dir() else set()
    if "index.json" in names:
        raise ValueError(
            f"{place} is an index of an older version: delete it (rm -r '{place}') and "
            f"make it anew: python tools/search_images.py --interactive '{folder}'"
        )
    if names - {LOCK} and f"{TABLE}.lance" not in names:
        raise ValueError(f"{place} is not empty and holds no index: name another.")


def _student_hash(model: KDEOV) -> str:
    """SHA-256 of what image embeddings depend on: weights and sizes of the input."""
    metadata = [model.sizes, normalisation(model.model.data_preprocessor)]
    digest = hashlib.sha256(str(metadata).encode())
    for name, value in sorted(model.model.state_dict().items()):
        if name.split(".")[0] in ("backbone", "neck", "global_head"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
