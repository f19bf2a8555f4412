"""Write the built-in world: images, instances, captions, semantic maps."""

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from kdeov_mm.border import given_path, sentences
from kdeov_mm.datasets.shapes import WORLDS
from kdeov_mm.datasets.shapes_files import write_world

DEFAULTS = {  # folder below data, images for training and validation, bytes of one
    "360": ("shapes", 4000, 500, 25_000),
    "1203": ("shapes_1203", 6000, 1000, 25_000),
    "8": ("shapes_8", 400, 300, 25_000),
    "hard": ("shapes_hard", 4000, 1000, 60_000),
}


@sentences("make_shapes.py")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--world",
        choices=list(WORLDS),
        default="360",
        help="number of classes: the demo's, LVIS's, or 8 to fine-tune on; or the "
        "hard world of 501 (default: %(default)s)",
    )
    parser.add_argument(
        "--root",
        type=given_path,
        help="folder of the world (default: data/shapes, data/shapes_WORLD)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--train", type=int, help="training images (default: 4000, 6000, 400, 4000)"
    )
    parser.add_argument("--val", type=int, help="the same (500, 1000, 300, 1000)")
    args = parser.parse_args()
    # the defaults depend on the world
    folder, train, val, size = DEFAULTS[args.world]
    args.train = train if args.train is None else args.train
    args.val = val if args.val is None else args.val
    args.root = args.root or Path("data") / folder
    if min(args.train, args.val) < 1:
        parser.error("--train and --val need at least one image each")
    # what ships has seen these scenes: the teachers, and the hard world's start
    if args.seed in (7000, 7001, 9000):
        parser.error(f"what ships was trained or tested on the scenes of {args.seed}")
    # disk: a world that is there already needs none
    there = (args.root / "world.json").is_file()
    need = 0 if there else (args.train + args.val) * size
    args.root.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.root.parent).free
    if free < need:
        print(
            f"{args.root.parent} has {free / 1e6:.0f} MB free, the world needs "
            f"{need / 1e6:.0f} MB: make room, or choose another --root.",
            file=sys.stderr,
        )
        return 1
    try:
        # a world that is there is checked, not written again
        written = write_world(
            args.root,
            args.seed,
            args.train,
            args.val,
            lambda jobs: tqdm(jobs, desc="drawing", unit="image"),
            args.world,
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{args.root}: {args.train} training and {args.val} validation "
        f"images, {'written' if written else 'already there'}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
