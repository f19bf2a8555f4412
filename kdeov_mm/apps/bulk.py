"""Boxes, masks and vectors of very many images, by workers of Ray."""

import itertools
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from tqdm import tqdm

from ..border import ODD
from ..files import write_whole
from ..inference.api import KDEOV
from ..inference.images import in_batches
from ..inference.sources import ImageSource
from .rows import ROWS, Find, as_text
from .search import Row, embedded

try:
    import pyarrow
    import ray
    from pyarrow import parquet
    from ray.util import ActorPool
except ImportError as error:
    raise ImportError("several workers need pip install 'kdeov_mm[scale]'") from error

SHARD = 256  # images in a file, about, until there are MOST files
MOST = 512  # files; a power of two, as all numbers of them
START = -1  # in the place of a file's number
DEATHS = 3  # of workers on the same file, before it is given up
STORE = 2**27  # bytes of Ray's memory for objects: lists of files alone pass it

STAMP = ("path", "size", "mtime")  # of a file: another one, and it is searched again


class Worker:
    """Finds, and writes files of rows.

    Rows of images that are known from an earlier run, and did not change, are taken
    over; those of unreadable images are not.

    Args:
        folder: of the files.
        schema: of their rows.
        load: loads a model, when there is something to find, and gives what finds rows
            of sources, in their order.
    """

    def __init__(self, folder: Path, schema: Any, load: Callable[[], Find]) -> None:
        self.folder, self.schema, self.load = folder, schema, load
        self.find: Find | None = None

    def ready(self) -> tuple[int, int, list[str]]:
        """Nothing is done yet, but the worker has started."""
        return 0, 0, []

    def shard(
        self, number: int, total: int, sources: Sequence[ImageSource]
    ) -> tuple[int, int, list[str]]:
        """Write a file: a row for each source, in the order of the paths.

        Returns:
            Numbers of images that were searched and taken over; errors of the rest.
        """
        # stamps from before the files are read: a change meanwhile shows
        todo = {_stamp(source): source for source in sources}
        tables = [*self._known(number, total, todo)]
        kept = sum(map(len, tables))
        # a file that is whole is left as it is
        target = shard_file(self.folder, number, total)
        if not todo and len(tables) == 1 and self._read(target) == tables[0]:
            return 0, kept, []
        errors = []
        for batch in in_batches(self._rows(todo), ROWS):
            errors += [row["error"] for row in batch if "error" in row]
            tables.append(pyarrow.Table.from_pylist(batch, self.schema))
        whole = pyarrow.concat_tables([self.schema.empty_table(), *tables])
        whole = whole.sort_by("path")
        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(whole, buffer, compression="zstd")
        write_whole(target, buffer.getvalue())
        return len(todo), kept, errors

    def _known(
        self, number: int, total: int, todo: dict[Any, ImageSource]
    ) -> Iterator[pyarrow.Table]:
        """Rows of earlier runs, whose sources are taken from those to do."""
        while total:
            # with half as many files, these rows were in that of the remainder
            table = self._read(shard_file(self.folder, number % total, total))
            stamps = zip(*(table[key].to_pylist() for key in STAMP))
            good = table["error"].is_null().to_pylist()
            taken = [todo.pop(s, None) if g else None for s, g in zip(stamps, good)]
            names = pyarrow.array([s and as_text(s.name) for s in taken], "string")
            place = self.schema.get_field_index("file_name")
            table = table.set_column(place, self.schema.field(place), names)
            if len(table := table.filter(names.is_valid())):
                yield table.combine_chunks()
            total //= 2

    def _rows(self, todo: dict[Any, ImageSource]) -> Iterator[Row]:
        """Find, and give rows; the model is loaded once, when it is needed."""
        if not todo:
            return
        if self.find is None:
            self.find = self.load()
        # a row for each source, in their order
        for stamp, row in zip(todo, self.find([*todo.values()])):
            yield dict(zip(STAMP, stamp)) | row

    def _read(self, file: Path) -> pyarrow.Table:
        """The rows of a file; none where it is missing or damaged."""
        try:
            return parquet.read_table(file, schema=self.schema)
        except (OSError, *ODD):
            return self.schema.empty_table()


def _stamp(source: ImageSource) -> tuple[str, int | None, int | None]:
    """An image's file, its size and time of change; None where it is gone."""
    stamp = source.stamp() or (str(source.file), None, None)
    return (as_text(stamp[0]), *stamp[1:])


def shard_file(folder: Path, number: int, total: int) -> Path:
    """The file of a shard, e.g. ``0003-of-0016.parquet``."""
    return folder / f"{number:04d}-of-{total:04d}.parquet"


def parted(sources: Iterable[ImageSource], total: int) -> list[list[ImageSource]]:
    """Shards, by the files' paths alone: others do not move them.

    The paths are absolute, for workers on other machines have their own folder.
    """
    shards: list[list[ImageSource]] = [[] for _ in range(total)]
    for source in sources:
        file = str(source.file)
        own = source if source.path is None else replace(source, path=Path(file))
        shards[crc32(os.fsencode(file)) % total].append(own)
    return shards


def find_all(
    sources: Sequence[ImageSource],
    folder: Path,
    schema: Any,
    load: Callable[[], Find],
    *,
    workers: int | None,
    address: str | None = None,
    cuda: bool = False,
) -> list[str]:
    """Find in all images, by workers; each file of rows is written as a whole.

    Args:
        sources: image files, each once.
        folder: for the files; workers on other machines see it as well.
        schema, load: see :class:`Worker`; those of :mod:`kdeov_mm.apps.rows`.
        workers: their number; None: as many as the cluster has CPUs, or GPUs.
        address: of a Ray cluster; None: processes on this machine.
        cuda: a worker computes on a GPU, which others may share.

    Returns:
        Errors of images that could not be read.

    Raises:
        ValueError: videos or images without a file; more workers than CPUs; no GPU.
        ChildProcessError: three workers died on the same file of rows, or at start.
    """
    if odd := [s.name for s in sources if s.is_video or s.file is None]:
        raise ValueError(f"workers search image files alone, not {odd[0]}")
    # an image's file is known by its path; there are never fewer files than before
    folder = folder.absolute()
    folder.mkdir(exist_ok=True)
    for scratch in folder.glob("*.tmp"):
        scratch.unlink()
    total = max([1, *(int(f.stem[-4:]) for f in folder.glob("*-of-*.parquet"))])
    while total < MOST and total * SHARD < len(sources):
        total *= 2
    shards = parted(sources, total)
    on: Any = dict(workers=workers, address=address, cuda=cuda)
    _, errors = share_out(Worker, (folder, schema, load), shards, **on)
    # rows of earlier numbers of files have been taken over
    for file in folder.glob("*-of-*.parquet"):
        if int(file.stem[-4:]) != total:
            file.unlink()
    return errors


def share_out(
    kind: type,
    args: tuple[Any, ...],
    shards: Sequence[Sequence[Any]],
    *,
    workers: int | None,
    address: str | None = None,
    cuda: bool = False,
) -> tuple[int, list[str]]:
    """Have workers do shards.

    Args:
        kind: of the workers: a class with the methods of :class:`Worker`.
        args: what it is made with.
        shards: what there is to do.
        workers, address, cuda: as in :func:`find_all`.

    Returns:
        How many items were done and not only taken over, and the errors of the rest.

    Raises:
        ValueError: more workers than CPUs; no GPU.
        ChildProcessError: three workers died on the same shard, or at start.
    """
    with _cluster(workers, address, cuda) as (count, needs):
        actor: Any = ray.remote(**needs)(kind)
        return _work(lambda: actor.remote(*args), count, shards)


class Embedder:
    """A worker: reads images, and embeds them.

    Args:
        make: gives the model.
    """

    def __init__(self, make: Callable[[], KDEOV]) -> None:
        self.model = make()

    def embed(self, rows: Sequence[Row]) -> list[Row]:
        """See :func:`kdeov_mm.apps.search.embedded`."""
        return [*embedded(self.model, rows)]


def embed_all(
    make: Callable[[], KDEOV],
    rows: Iterable[Row],
    *,
    workers: int | None,
    address: str | None = None,
    cuda: bool = False,
) -> Iterator[Row]:
    """As :func:`kdeov_mm.apps.search.embedded`, by workers, which a first row starts.

    A worker that dies has a successor, and its images are read again.

    Args:
        make: gives a worker its model.
        rows: of images, whose sources workers on other machines see as well.
        workers, address, cuda: as in :func:`find_all`.

    Yields:
        The rows, in any order.

    Raises:
        ValueError: more workers than CPUs; no GPU.
        ChildProcessError: a worker died three times.
    """
    batches = iter(in_batches(rows, ROWS))
    if (first := next(batches, None)) is None:
        return
    with _cluster(workers, address, cuda) as (count, needs):
        lives = DEATHS - 1
        actor = ray.remote(max_restarts=lives, max_task_retries=lives, **needs)
        some = [actor(Embedder).remote(make) for _ in range(count)]
        pool = ActorPool(some)
        try:
            for batch in itertools.chain([first], batches):
                pool.submit(lambda worker, its: worker.embed.remote(its), batch)
                # as many are under way as there are workers
                if not pool.has_free():
                    yield from pool.get_next_unordered()
            while pool.has_next():
                yield from pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            said = f"a worker died {DEATHS} times: {error}"
            raise ChildProcessError(said) from None


@contextmanager
def _cluster(
    workers: int | None, address: str | None, cuda: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ray for a while; the number of workers, and what each of them needs."""
    # nothing is told to anybody
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = dict(num_cpus=workers, include_dashboard=False)
    here["object_store_memory"] = STORE
    quiet: dict[str, Any] = dict(log_to_driver=False, logging_level="ERROR")
    ray.init(address or "local", **quiet, **({} if address else here))
    try:
        count, share = _resources(workers, cuda)
        yield count, dict(num_cpus=1, num_gpus=share)
    finally:
        ray.shutdown()


def _resources(workers: int | None, cuda: bool) -> tuple[int, float]:
    """The number of workers, and each one's share of a GPU."""
    has = ray.cluster_resources()
    cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    if cuda and not gpus:
        raise ValueError("device cuda: Ray finds no GPU")
    count = workers or (gpus if cuda else cpus)
    if not 1 <= count <= cpus:
        raise ValueError(
            f"{count} workers on {cpus} CPUs: take fewer, or give the cluster more"
        )
    return count, 1 / -(-count // gpus) if cuda else 0


def _work(
    start: Callable[[], Any], workers: int, shards: Sequence[Sequence[Any]]
) -> tuple[int, list[str]]:
    """Give shards to workers that are free, and those of the dead to others.

    Workers for which there is no room any more, since a node is lost, are not waited
    for.
    """
    queue, idle = deque(range(len(shards))), list[Any]()
    waiting: dict[Any, tuple[Any, int]] = {}  # answers to come: of whom, of which shard

    def hire() -> None:
        worker = start()
        waiting[worker.ready.remote()] = worker, START

    for _ in range(workers):
        hire()
    deaths, errors, left, done = Counter[int](), list[str](), len(shards), 0
    with tqdm(total=sum(map(len, shards)), unit="image", file=sys.stderr) as bar:
        while left:
            while queue and idle:
                worker, number = idle.pop(), queue.popleft()
                order = worker.shard.remote(number, len(shards), shards[number])
                waiting[order] = worker, number
            (answer, *_), _ = ray.wait([*waiting])
            worker, number = waiting.pop(answer)
            try:
                searched, kept, wrong = ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:  # it was killed, or its node lost
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    what = "at their start" if number == START else f"on file {number}"
                    said = f"{DEATHS} workers died {what}: {error}"
                    raise ChildProcessError(said) from None
                if number != START:
                    queue.append(number)
                hire()
                continue
            idle.append(worker)
            left -= number != START
            errors += wrong
            done += searched
            bar.total -= kept
            bar.update(searched)
    return done, errors
