"""Colour images and videos by words: label maps as PNG files, and drawings.

    python tools/segment.py CHECKPOINT FOLDER --words "solid red ring, blue star"
    python tools/segment.py CHECKPOINT a.jpg film.mp4 --words words.txt --every 5
    python tools/segment.py CHECKPOINT map.png --words "road" --size 2048 --window 512
    python tools/segment.py CHECKPOINT list.parquet --words words.txt --workers 8

Writes below --out:

    masks/        of each image a PNG of its size, 16 bit: 0 for none of the words, else
                  the number of the word, from 1
    vis/          the image coloured by its words, with a legend; of a video an .mp4
    words.json    the words, in the order of their numbers

With --workers or --ray, for very many images (docs/scale.md), it writes shards/ in the
place of these, and the same command goes on where a run has ended.

Exit codes: 0 all is done; 1 some inputs could not be read (they are listed, the rest
is done); 2 wrong use.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)

from mmdet.visualization import get_palette
from tqdm import tqdm

from kdeov_mm import KDEOV
from kdeov_mm.border import given_path, sentences
from kdeov_mm.files import claim, locked, write_whole
from kdeov_mm.inference.drawing import Drawings, draw_labels
from kdeov_mm.inference.results import Result, depends_on, mask_file
from kdeov_mm.inference.sources import ImageSource, list_sources
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=given_path)
    parser.add_argument(
        "inputs", nargs="+", help="files, folders, globs, shards, ...: as detect.py"
    )
    parser.add_argument(
        "--words", required=True, help='"red ring, blue star", or a file of words'
    )
    parser.add_argument(
        "--config", type=given_path, help="default: the one in the checkpoint"
    )
    parser.add_argument("--out", type=given_path, default=Path("work_dirs/segment"))
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="least share of a pixel's word"
    )
    parser.add_argument(
        "--size", type=int, help="longer side of the input (default: the config's)"
    )
    parser.add_argument(
        "--window", type=int, help="side of windows that are seen one by one"
    )
    parser.add_argument(
        "--every", type=int, default=1, help="of a video, one in so many"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--workers", type=int, help="processes that share the work (default: this one)"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="of a Ray cluster, or 'auto': the one here"
    )
    args = parser.parse_args(argv)
    for key in ("size", "window", "every", "workers"):
        if (value := getattr(args, key)) is not None and value < 1:
            parser.error(f"--{key} is at least 1, got {value}")
    args.bulk = args.ray is not None or args.workers is not None
    if args.bulk and args.device not in ("cpu", "cuda"):
        parser.error(f"workers compute on cpu or cuda, got --device {args.device}")
    return args


@sentences("segment.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        return segment(args)
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        print(f"segment.py: {error}", file=sys.stderr)
        return 2


def segment(args: argparse.Namespace) -> int:
    """Colour one image after the other, or have workers do it."""
    # refuse before anything is written
    vocabulary = as_vocabulary(args.words)
    sources = list_sources(args.inputs)
    place = "cpu" if args.bulk else args.device
    make = functools.partial(load, args.config, args.checkpoint.absolute())
    model = make(place)
    model.check_segments()
    if args.bulk:
        errors = by_workers(
            functools.partial(make, args.device), sources, vocabulary, args
        )
    else:
        errors = one_by_one(model, sources, vocabulary, args)
    print(f"{args.out}: {len(sources) - len(errors)} of {len(sources)} inputs")
    for error in errors:
        print(f"could not be read: {error}", file=sys.stderr)
    return 1 if errors else 0


def load(config: Path | None, checkpoint: Path, device: str) -> KDEOV:
    if config:
        return KDEOV.from_config(config, checkpoint, device)
    return KDEOV.from_checkpoint(checkpoint, device)


def by_workers(
    make: Callable[[], KDEOV],
    sources: Sequence[ImageSource],
    vocabulary: Vocabulary,
    args: argparse.Namespace,
) -> list[str]:
    """Write files of rows; errors of the unreadable."""
    from kdeov_mm.apps import bulk, rows  # which need an extra

    options = dict(threshold=args.threshold, size=args.size, window=args.window)
    # files of other words or weights are left alone
    known = options | depends_on(args.checkpoint, args.config, vocabulary)
    claim(args.out / "settings.json", "masks", known, "name another --out.")
    find = functools.partial(rows.find_masks, make, vocabulary, options)
    on = dict(workers=args.workers, address=args.ray, cuda=args.device != "cpu")
    with locked(args.out):
        return bulk.find_all(sources, args.out / "shards", rows.MASKS, find, **on)


def one_by_one(
    model: KDEOV,
    sources: Sequence[ImageSource],
    vocabulary: Vocabulary,
    args: argparse.Namespace,
) -> list[str]:
    """Write masks and drawings in this process; errors of the unreadable."""
    names = [own[0] for own in vocabulary.words]
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / "words.json", json.dumps(names, indent=1).encode())
    errors = []
    with Drawings(args.out / "vis", args.every) as drawings:
        for source in tqdm(sources, unit="input", file=sys.stderr):
            try:
                colour(model, source, vocabulary, args, drawings)
            except OSError as error:
                errors.append(f"{source.name}: {error}")
            drawings.finish()
    return errors


def colour(
    model: KDEOV,
    source: ImageSource,
    vocabulary: Vocabulary,
    args: argparse.Namespace,
    drawings: Drawings,
) -> None:
    """Write the masks and drawings of one input."""
    names = [own[0] for own in vocabulary.words]
    palette = get_palette("random", len(names))
    for frame, image in source.images(args.every):
        (found,) = model.segment(
            image, vocabulary, args.threshold, size=args.size, window=args.window
        )
        labels = found["labels"].cpu().numpy()
        suffix = "" if frame is None else f"_{frame:06d}"
        mask = args.out / "masks" / f"{source.name}{suffix}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mask, mask_file(labels))
        # the frames of a video have one size: no legend
        still = frame is None
        side = 800 if still else 1
        drawing = draw_labels(
            image, labels, names, palette, min_side=side, legend=still
        )
        drawings.add(Result(source, frame, image), drawing)


if __name__ == "__main__":
    sys.exit(main())
