"""Find words in images, folders and videos: COCO's JSON, and drawings.

    python tools/detect.py CHECKPOINT FOLDER --words "solid red ring, blue star"
    python tools/detect.py CHECKPOINT a.jpg 'photos/**/*.png' --words words.txt
    python tools/detect.py CHECKPOINT film.mp4 --words vocabulary.safetensors --every 5
    python tools/detect.py CHECKPOINT map.png --words "boat" --slices 640
    python tools/detect.py CHECKPOINT list.parquet --words words.txt --workers 8
    python tools/detect.py CHECKPOINT 'shards/*.tar' s3://bucket/photos --words "boat"
    python tools/detect.py CHECKPOINT FOLDER --words words.txt --ray auto

Writes below --out:

    detections.json   of all inputs: images, categories (the words), annotations with
                      scores; pycocotools loads it
    vis/              drawings; of a video an .mp4
    parts/            the same for each input, as it is done

A run that was killed goes on by the same command: what is done is not done again,
but for files that changed and files that could not be read. A video is done as a
whole. --restart removes what the folder has.

With --workers or --ray, for very many images (docs/scale.md), there are no drawings and
no parts/ but

    shards/           rows in Parquet, unreadable images with their errors

Exit codes: 0 all is done; 1 some inputs could not be read (they are listed, the rest
is done); 2 wrong use, or results cannot be written; 130 interrupted.
"""

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kdeov_mm.border import ODD, given_path, sentences
from kdeov_mm.checkpoints import check_device
from kdeov_mm.files import claim, locked, whole_file, write_whole
from kdeov_mm.inference.drawing import Drawings
from kdeov_mm.inference.inferencer import KDEOVInferencer
from kdeov_mm.inference.results import coco_record, depends_on, join_coco, write_coco
from kdeov_mm.inference.sources import ImageSource, list_sources
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary

OUT = Path("work_dirs/detect")
THREADS = 4  # that read images for a GPU, which works while results are drawn


@sentences("detect.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        return detect(args)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        print(f"detect.py: {error}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=given_path)
    parser.add_argument(
        "inputs",
        nargs="+",
        help="files, folders with their subfolders, globs, .tar shards, addresses of\n"
        "object stores, lists: CSV or Parquet with a column 'path'",
    )
    parser.add_argument(
        "--words", required=True, help='"red ring, blue star", or a file of words'
    )
    parser.add_argument(
        "--config", type=given_path, help="default: the one in the checkpoint"
    )
    parser.add_argument(
        "--out", type=given_path, default=OUT, help="default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="least score (default: 0.3)"
    )
    parser.add_argument("--no-drawings", action="store_true")
    parser.add_argument(
        "--slices", type=int, help="search tiles of so many pixels, too: large images"
    )
    parser.add_argument(
        "--overlap", type=float, default=0.2, help="of tiles (default: 0.2)"
    )
    parser.add_argument(
        "--every", type=int, default=1, help="of a video, one frame in so many"
    )
    parser.add_argument(
        "--agnostic",
        action="store_true",
        help="one box for an object: its best word (default: one for each word)",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--workers", type=int, help="processes that share the work (default: this one)"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="of a Ray cluster, or 'auto': the one here"
    )
    parser.add_argument(
        "--restart", action="store_true", help="remove what --out has, and begin anew"
    )
    args = parser.parse_args(argv)
    # numbers and ranges
    for key in ("batch_size", "slices", "every", "workers"):
        if (value := getattr(args, key)) is not None and value < 1:
            parser.error(f"--{key.replace('_', '-')} is at least 1, got {value}")
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold lies in [0, 1], got {args.threshold}")
    if not 0 <= args.overlap < 1:
        parser.error(f"--overlap lies in [0, 1), got {args.overlap}")
    args.bulk = args.ray is not None or args.workers is not None
    args.no_drawings |= args.bulk
    if args.bulk and args.device not in ("cpu", "cuda"):
        parser.error(f"workers compute on cpu or cuda, got --device {args.device}")
    try:
        # a cluster's GPUs are elsewhere
        check_device("cpu" if args.ray else args.device)
    except ValueError as error:
        parser.error(str(error))
    return args


def detect(args: argparse.Namespace) -> int:
    """Do what is not done yet, and put all together."""
    if args.bulk:
        from kdeov_mm.apps import bulk, rows  # which need an extra
    # refuse before anything is written
    vocabulary = as_vocabulary(args.words)
    sources = unique(list_sources(args.inputs))
    refuse_inside(args.out, sources, args.inputs)
    about = settings(args, vocabulary)
    make = functools.partial(
        KDEOVInferencer,
        args.config and args.config.absolute(),
        args.checkpoint.absolute(),
        device=args.device,
        words=vocabulary,
    )
    inferencer = make(device="cpu") if args.bulk else make()
    prepare(args.out, about, args.restart)
    target, shards = args.out / "detections.json", args.out / "shards"
    # one process at a time: what is done is left, then all parts are joined
    with locked(args.out):
        if args.bulk:
            on = dict(workers=args.workers, address=args.ray, cuda=args.device != "cpu")
            load = functools.partial(rows.find_boxes, make, asked(args))
            errors = bulk.find_all(sources, shards, rows.BOXES, load, **on)
            images, boxes = rows.write_detections(shards, target, inferencer.names())
        else:
            errors = one_by_one(inferencer, sources, args)
            parts = (read_part(args.out, s) for s in sources)
            records = [record for part in parts if part for record in part["records"]]
            with whole_file(target) as file:
                images, boxes = write_coco(file, lambda: records, inferencer.names())
    print(f"{target}: {images} images, {boxes} boxes")
    for error in errors:
        print(f"could not be read: {error}", file=sys.stderr)
    # the rest is done all the same
    return 1 if errors else 0


def one_by_one(
    inferencer: KDEOVInferencer,
    sources: Sequence[ImageSource],
    args: argparse.Namespace,
) -> list[str]:
    """Do what is not done yet, in this process; names and errors of the unreadable."""
    todo = [s for s in sources if read_part(args.out, s) is None]
    if len(todo) < len(sources):
        done = len(sources) - len(todo)
        print(f"{done} of {len(sources)} inputs are done already", file=sys.stderr)
    errors = process(inferencer, todo, args) if todo else ()
    return [f"{name}: {error}" for name, error in errors]


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """What is asked of :meth:`KDEOVInferencer.stream`."""
    return dict(
        batch_size=args.batch_size,
        score_threshold=args.threshold,
        slices=args.slices,
        overlap=args.overlap,
        every=args.every,
        agnostic=args.agnostic,
    )


def unique(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Each file once, though it is in a folder and named besides."""
    return [*{source.name: source for source in sources}.values()]


def refuse_inside(
    out: Path, sources: Sequence[ImageSource], inputs: Sequence[str]
) -> None:
    """Drawings among the inputs would be inputs of the next run."""
    # folders that hold --out, and files in it
    whole = out.resolve()
    folders = [Path(g) for g in inputs if Path(g).is_dir()]
    among = [f for f in folders if whole.is_relative_to(f.resolve())]
    among += [s.path for s in sources if s.path and whole in s.path.resolve().parents]
    if among:
        raise ValueError(
            f"--out {out} lies in the input {among[0]}, or holds it: drawings would be "
            "taken for images. Name another place."
        )


def settings(args: argparse.Namespace, vocabulary: Vocabulary) -> dict[str, Any]:
    """What results depend on, besides the inputs."""
    return depends_on(args.checkpoint, args.config, vocabulary) | {
        "threshold": args.threshold,
        "slices": args.slices,
        "overlap": args.overlap if args.slices else None,
        "every": args.every,
        "agnostic": args.agnostic or None,
        "drawings": not args.no_drawings,
        "shards": args.bulk or None,
    }


def prepare(out: Path, about: dict[str, Any], restart: bool) -> None:
    """Make the folder, or see that it is of the same settings."""
    manifest = out / "settings.json"
    # begun anew: only what a former run has written is removed
    if restart and manifest.exists():
        with locked(out):
            for folder in ("parts", "vis", "shards"):
                shutil.rmtree(out / folder, ignore_errors=True)
            (out / "detections.json").unlink(missing_ok=True)
            manifest.unlink()
    advice = "begin anew with --restart, or name another --out."
    claim(manifest, "detections", about, advice)


def part_file(out: Path, source: ImageSource) -> Path:
    return out / "parts" / f"{source.name}.json"


def read_part(out: Path, source: ImageSource) -> dict[str, Any] | None:
    """The results of an input that is done, and has not changed since."""
    try:
        # a part of a file that changed is not its result any more
        part = json.loads(part_file(out, source).read_text())
        boxes = join_coco(part["records"], [])["annotations"]
        corners = [number for box in boxes for number in box["bbox"]]
        whole = len(corners) == 4 * len(boxes) and np.isfinite(corners).all()
        return part if whole and tuple(part["stamp"]) == source.stamp() else None
    except (FileNotFoundError, *ODD):  # not done, or damaged
        return None


def process(
    inferencer: KDEOVInferencer,
    sources: Sequence[ImageSource],
    args: argparse.Namespace,
) -> Iterator[tuple[str, str]]:
    """Find, draw and write input by input; yield names and errors of the unreadable."""
    threads = 0 if args.device == "cpu" else THREADS
    results = inferencer.stream(sources, threads=threads, **asked(args))
    # stamps from before the files are read: a change meanwhile shows
    names = inferencer.names()
    stamps = {source: source.stamp() for source in sources}
    bar = tqdm(total=count(sources, args.every), unit="image", file=sys.stderr)
    with bar, Drawings(args.out / "vis", args.every) as drawings:
        for source, group in groupby(results, key=lambda result: result.source):
            # an image is one result, a video one for each frame
            records = []
            error = None
            for result in group:
                error = result.error
                if result.sample is not None:
                    records.append(coco_record(result))
                    if not args.no_drawings:
                        drawing = inferencer.drawing(result, names, args.threshold)
                        drawings.add(result, drawing)
                bar.update()
            drawings.finish()
            if error:
                yield source.name, error
                continue
            # from here on this input is done
            file = part_file(args.out, source)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = dict(stamp=stamps[source], records=records)
            write_whole(file, json.dumps(part).encode())


def count(sources: Sequence[ImageSource], every: int) -> int | None:
    """Images and frames; None where a video does not tell."""
    total = 0
    for source in sources:
        frames = 1
        if source.is_video:
            try:
                frames = -(-source.video_info().num_frames // every)
            except OSError:  # which is told when it is its turn
                frames = 1
        if not frames:
            return None
        total += frames
    return total


if __name__ == "__main__":
    sys.exit(main())
