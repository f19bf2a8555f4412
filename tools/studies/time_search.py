"""Times of the search index with made-up vectors: filling, adding, opening, searching.

    python tools/studies/time_search.py --images 1000000    # fills it
    python tools/studies/time_search.py --images 1000000    # measures, in a new process

Vectors of 512 numbers, clustered: a centre for every 50 images. No folder is listed, no
image read and no network run, so the times are those of the table alone.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdeov_mm import KDEOV
from kdeov_mm.apps import search
from kdeov_mm.border import sentences
from kdeov_mm.inference.images import in_batches
from kdeov_mm.inference.sources import ImageSource

DIMS, NEW, QUERIES, TOP = 512, 1000, 20, 12
T = TypeVar("T")


class MadeUp(KDEOV):
    """Gives vectors near one of so many centres."""

    def __init__(self, images: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        centres = np.random.default_rng(0).standard_normal((images // 50, DIMS), "f4")
        self.centres = centres
        self.model: Any = SimpleNamespace(text_encoder=SimpleNamespace(embed_dims=DIMS))

    def vectors(self, number: int) -> Tensor:
        """Unit vectors (number, D)."""
        noise = self.rng.standard_normal((number, DIMS), "f4")
        near = self.centres[self.rng.integers(len(self.centres), size=number)]
        return torch.nn.functional.normalize(torch.from_numpy(near + 0.7 * noise))

    def embed(self, rows: Iterable[search.Row]) -> Iterator[search.Row]:
        """In the place of :func:`search.embedded`, which reads images."""
        for batch in in_batches(rows, 256):
            vectors = self.vectors(len(batch)).half().numpy()
            for row, vector in zip(batch, vectors):
                yield dict(row, width=1, height=1, vector=vector)


class MadeUpIndex(search.ImageIndex):
    """Of files that are not there: what is found is given."""

    files: Any = None

    def _found(self, schema: Any) -> Any:
        return self.files.cast(schema), ImageSource

    def grow(self, number: int) -> None:
        """Have so many files in the folder."""
        names = [f"{2000 + i % 25}/{i:09d}.jpg" for i in range(number)]
        mtime = np.arange(number).astype("datetime64[ns]")
        columns = dict(path=names, size=np.arange(number), mtime=mtime)
        self.files = self.arrow.table(columns)


@sentences("time_search.py")
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/time_search"))
    args = parser.parse_args()
    search._student_hash = lambda model: "made up"
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    model = MadeUp(args.images)

    def opened() -> MadeUpIndex:
        return MadeUpIndex(model, args.out / "images", args.out / "store")

    index = opened()
    if index.table.count_rows() < args.images:
        index.grow(args.images)
        timed(
            f"{args.images} images, and their index",
            lambda: index.update(embed=model.embed),
        )
        print("filled; run it again to measure")
        return
    queries = MadeUp(args.images, seed=1).vectors(QUERIES)
    index = timed("opened again", opened)
    timed("first query", lambda: index.search(queries[0]))
    print(f"resident memory: {resident():.2f} GB")
    compare(index, queries)
    # the second time the table has small files, which the index does not know
    for _ in range(2):
        index.grow(index.table.count_rows() + NEW)
        before = size(args.out)
        timed(f"{NEW} new images", lambda: index.update(embed=model.embed))
        print(f"written: {(size(args.out) - before) / 1e6:.1f} MB")
    compare(index, queries)
    print(f"resident memory: {resident():.2f} GB")


def compare(index: search.ImageIndex, queries: Tensor) -> None:
    """The time of searches, and how many of the nearest images they find."""
    for _ in range(2):  # the second time, what was read is in memory
        start = time.perf_counter()
        found = [index._nearest(query, TOP) for query in queries]
        took = (time.perf_counter() - start) / len(queries) * 1e3
        print(f"query: {took:.1f} ms")
    start = time.perf_counter()
    exact = [index._nearest(query, TOP, exact=True) for query in queries]
    took = (time.perf_counter() - start) / len(queries) * 1e3
    share = np.mean([len(a.keys() & b.keys()) / TOP for a, b in zip(found, exact)])
    print(f"exact: {took:.0f} ms; recall@{TOP} {share:.3f}")


def timed(what: str, call: Callable[[], T]) -> T:
    """Call, and print how long it took."""
    start = time.perf_counter()
    answer = call()
    print(f"{what}: {time.perf_counter() - start:.3f} s", flush=True)
    return answer


def resident() -> float:
    """Memory of this process now, in GB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
