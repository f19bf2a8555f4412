"""Find images of a folder by words; the folder is indexed once.

    python tools/search_images.py "solid red ring" data/shapes/images/val
    python tools/search_images.py "striped purple bowtie" "green star" FOLDER \
        --checkpoint CHECKPOINT --top 20 --out hits.png
    python tools/search_images.py FOLDER --interactive
    python tools/search_images.py "red ring" FOLDER --where "path like '%2024%'"
    python tools/search_images.py "red ring" FOLDER --index s3://bucket/search
    python tools/search_images.py "red ring" FOLDER --workers 8    # embed new images
    python tools/search_images.py "red ring" 's3://bucket/shards/*.tar'

An image of the hits is written for each line of words. The index follows new, changed
and removed files; an interrupted run is gone on with.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from kdeov_mm import KDEOV
from kdeov_mm.apps.search import ImageIndex, contact_sheet
from kdeov_mm.border import given_path, sentences
from kdeov_mm.inference.drawing import IMAGE_SUFFIXES

CHECKPOINT = Path("work_dirs/kdeov_n_shapes_joint/iter_800.pth")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="what to look for, one or several")
    parser.add_argument(
        "folder",
        help="of images, with its subfolders; or a glob, a list (CSV or Parquet, a\n"
        "column 'path'), .tar shards, an address of an object store",
    )
    parser.add_argument(
        "--checkpoint",
        type=given_path,
        default=CHECKPOINT,
        help="a model with a global head (default: %(default)s)",
    )
    parser.add_argument(
        "--config", type=given_path, help="default: the one in the checkpoint"
    )
    parser.add_argument(
        "--index",
        help="folder or address of an object store (default: below work_dirs/search)",
    )
    parser.add_argument(
        "--where",
        help="images to look at, in SQL, e.g. \"path like '%%2024%%' and width > 640\"",
    )
    parser.add_argument("--top", type=int, default=12, help="hits (default: 12)")
    parser.add_argument(
        "--out",
        type=given_path,
        default=Path("work_dirs/search/hits.png"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--interactive", action="store_true", help="read words from the terminal"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--workers", type=int, help="processes that embed images (default: this one)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster, or 'auto'")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers is at least 1")
    # both need something to look for
    if args.top < 1:
        parser.error("--top is at least 1")
    if args.out.suffix.lower() not in IMAGE_SUFFIXES or args.out.is_dir():
        parser.error(f"--out {args.out}: expected a file, one of {IMAGE_SUFFIXES}")
    if not args.words and not args.interactive:
        parser.error('say what to look for: search_images.py "red ring" FOLDER')
    return args


@sentences("search_images.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        index = open_index(args)
        # an image of hits for each line of words, numbered from the second
        for number, words in enumerate(asked(args)):
            out = args.out
            if number:
                out = out.with_stem(f"{out.stem}_{number + 1}")
            answer(index, words, args, out)
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def open_index(args: argparse.Namespace) -> ImageIndex:
    """The index of the folder, brought up to date."""
    if not args.checkpoint.is_file():
        raise FileNotFoundError(
            f"checkpoint {args.checkpoint} does not exist; a model with a global head "
            "is trained by tools/train.py configs/kdeov/kdeov_n_shapes.py, and then "
            "configs/kdeov/kdeov_n_shapes_joint.py."
        )
    # a checkpoint of ours holds its config; workers may have another working folder
    checkpoint = args.checkpoint.absolute()
    if args.config:
        config = args.config.absolute()
        make = partial(KDEOV.from_config, config, checkpoint, args.device)
    else:
        make = partial(KDEOV.from_checkpoint, checkpoint, args.device)
    model = make()
    index = ImageIndex(model, args.folder, args.index)
    known, start = index.table.count_rows(), time.perf_counter()
    bar: Callable[[Iterable], Iterable] = lambda names: tqdm(  # noqa: E731
        names, desc="indexing", unit="image", disable=not names
    )
    if args.workers is None and args.ray is None:
        done = index.update(bar)
    else:
        from kdeov_mm.apps.bulk import embed_all

        on = dict(workers=args.workers, address=args.ray, cuda=args.device != "cpu")
        done = index.update(bar, partial(embed_all, make, **on))
    print(
        f"{index.store}: {done['images']} images ({known} were known, {done['added']} "
        f"new or changed, {done['removed']} removed), {done['unreadable']} files could "
        f"not be read; {time.perf_counter() - start:.1f} s"
    )
    # files that are no images are listed, and tried again when they change
    bad = index.table.search().where("error is not null").limit(5)
    for row in bad.select(["path", "error"]).to_list():
        print(f"  {row['path']}: {row['error']}", file=sys.stderr)
    # the first search would wait for the words' encoder otherwise
    index.search("image", 1, args.where)
    return index


def asked(args: argparse.Namespace) -> Iterator[str]:
    """The words of the command line, then those of the terminal."""
    yield from args.words
    if args.interactive:
        print("words, or an empty line to end:", flush=True)
        for line in sys.stdin:
            if not line.strip():
                return
            yield line.strip()


def answer(index: ImageIndex, words: str, args: argparse.Namespace, out: Path) -> None:
    """Print the hits of some words, and draw them."""
    # the time of the search alone, without drawing
    start = time.perf_counter()
    hits = index.search(words, args.top, args.where)
    took = (time.perf_counter() - start) * 1e3
    print(f'"{words}": {len(hits)} hits in {took:.1f} ms')
    for hit in hits:
        print(f"  {hit.score:.3f}  {hit.path}")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(hits, f'"{words}" in {index.name}').save(out)
    print(f"  drawn in {out}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
