"""A page in your browser: words in, boxes out; a folder searched by words.

    python tools/web.py
    python tools/web.py CHECKPOINT --images FOLDER --port 7861

Nothing leaves this machine. Ctrl-C ends it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kdeov_mm import KDEOV
from kdeov_mm.border import given_path, sentences

WORK_DIRS = (Path("work_dirs/kdeov_n_shapes_joint"), Path("work_dirs/demo"))
IMAGES = Path("data/shapes/images/val")


@sentences("web.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=given_path,
        help="default: the newest of work_dirs/kdeov_n_shapes_joint, else of\n"
        "work_dirs/demo",
    )
    parser.add_argument(
        "--images",
        type=given_path,
        help=f"folder to search (default: {IMAGES}, else the examples)",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets other machines in, without a password",
    )
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    # what is wrong is said before a model is loaded
    if not 0 < args.port < 2**16:
        parser.error("--port lies in 1 to 65535")
    if args.images and not args.images.is_dir():
        parser.error(f"--images {args.images} is no folder")
    # the examples are drawn anew for each run
    with tempfile.TemporaryDirectory() as scratch:
        try:
            from kdeov_mm.apps.answers import write_examples
            from kdeov_mm.apps.web import build_page, serve

            model = KDEOV.from_checkpoint(
                args.checkpoint or default_checkpoint(), args.device
            )
            examples = write_examples(Path(scratch))
            images = args.images or (IMAGES if IMAGES.is_dir() else Path(scratch))
            # the page holds the model: its first answer is as fast as the others
            page = build_page(model, examples, images)
        except (ImportError, OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        # a port may be taken
        try:
            address = serve(page, args.host, args.port)
        except OSError:
            print(
                f"cannot listen on {args.host}:{args.port}: the port is taken, or the "
                "host is none of this machine. Name another --port or --host.",
                file=sys.stderr,
            )
            return 2
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return 0


def default_checkpoint() -> Path:
    """The newest checkpoint of the joint training, else of the demo."""
    for folder in WORK_DIRS:
        found = sorted(folder.glob("*.pth"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1]
    raise FileNotFoundError("there is no checkpoint yet: run `make demo` first.")


if __name__ == "__main__":
    sys.exit(main())
