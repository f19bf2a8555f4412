"""Write the built-in world: images, instances, captions, semantic maps."""

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from kdeov_mm.datasets.shapes import write_world

BYTES_PER_IMAGE = 25_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("data/shapes"),
        help="folder of the world (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--train", type=int, default=4000, help="training images (default: %(default)s)"
    )
    parser.add_argument(
        "--val", type=int, default=500, help="validation images (default: %(default)s)"
    )
    args = parser.parse_args()
    if min(args.train, args.val) < 1:
        parser.error("--train and --val need at least one image each")
    need = (args.train + args.val) * BYTES_PER_IMAGE
    args.root.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.root.parent).free
    if free < need:
        print(
            f"{args.root.parent} has {free / 1e6:.0f} MB free, the world "
            f"needs {need / 1e6:.0f} MB: make room, or choose another "
            "--root.",
            file=sys.stderr,
        )
        return 1
    try:
        written = write_world(
            args.root,
            args.seed,
            args.train,
            args.val,
            lambda jobs: tqdm(jobs, desc="drawing", unit="image"),
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
