"""Fill a store with the teacher's embeddings of a config's training images.

    python tools/cache_embeddings.py CONFIG
    python tools/cache_embeddings.py CONFIG --proposals CHECKPOINT
    python tools/cache_embeddings.py CONFIG --workers 8        # or --ray ADDRESS

What is embedded follows from the config: whole images; the boxes that its distillation
heads need each time; captions, where its pipeline loads them; dense maps, with --dense;
each also mirrored. The boxes 'stored' are those of an earlier student, --proposals. A
killed run continues where it stopped; damaged files are found and made again.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from kdeov_mm.border import given_path, sentences
from kdeov_mm.engine.fill_store import fill_store
from kdeov_mm.options import config_of


@sentences("cache_embeddings.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="training config")
    parser.add_argument(
        "--store",
        type=given_path,
        help="folder (default: the config's model.teacher.store)",
    )
    parser.add_argument(
        "--proposals",
        type=given_path,
        help="a student's checkpoint, for 'stored' boxes",
    )
    parser.add_argument("--dense", action="store_true", help="dense maps too")
    parser.add_argument("--shard-size", type=int, default=256, help="images in a file")
    parser.add_argument(
        "--workers", type=int, help="processes that share the work (default: this one)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster, or 'auto'")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers is at least 1")
    # an empty file would be one of no images, for ever
    if args.shard_size < 1:
        parser.error("--shard-size needs at least one image")
    # a StoreMismatch is a ValueError
    try:
        share_out = None
        if args.workers is not None or args.ray is not None:
            from kdeov_mm.apps import bulk  # which needs an extra

            on = dict(workers=args.workers, address=args.ray)
            share_out = functools.partial(bulk.share_out, **on)
        fill_store(
            config_of(args.config),
            args.store,
            args.proposals,
            args.dense,
            args.shard_size,
            share_out,
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
