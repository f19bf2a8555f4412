"""Write a student as an ONNX file, and check it against PyTorch.

    python tools/export_onnx.py CHECKPOINT dogs.onnx --words "brown dog, cat"
    python tools/export_onnx.py CHECKPOINT any.onnx --vocabulary-input

The first folds the words in: what is left is a plain convolutional network. The second
takes the vocabulary as its input `text` (K, D), any K; `--save-words FILE.safetensors`
writes the vectors of words for it. `--nms` puts the suppression into the graph.
docs/onnx_client.py runs both with numpy and onnxruntime alone; docs/onnx.md explains.
"""

import argparse
import sys
from collections.abc import Sequence

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)

from kdeov_mm import KDEOV
from kdeov_mm.border import given_path, sentences, whole_number
from kdeov_mm.inference.api import MAX_SIDE
from kdeov_mm.inference.export import export_onnx
from kdeov_mm.inference.export_masks import export_masks
from kdeov_mm.models import KDEOVDetector, SegStudent
from kdeov_mm.vocabulary import as_vocabulary


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="of tools/train.py")
    parser.add_argument("out", type=given_path, help="file to write, *.onnx")
    parser.add_argument(
        "--config", type=given_path, help="where the checkpoint holds none"
    )
    parser.add_argument(
        "--words",
        help='to fold in: "a, b, c", or a vocabulary (.txt, .json, .safetensors)',
    )
    parser.add_argument(
        "--vocabulary-input",
        action="store_true",
        help="the vocabulary is an input of the file; no words are folded in",
    )
    parser.add_argument(
        "--save-words",
        type=given_path,
        metavar="FILE.safetensors",
        help="with --vocabulary-input: write the vectors of --words here",
    )
    parser.add_argument(
        "--nms", action="store_true", help="put the suppression into the graph"
    )
    parser.add_argument("--agnostic", action="store_true", help="suppress across words")
    parser.add_argument(
        "--size", type=int, help="longer side of images (default: the config's)"
    )
    args = parser.parse_args(argv)
    # words are either folded in, or written beside the file
    if not (args.vocabulary_input or args.words):
        parser.error("give --words to fold in, or --vocabulary-input")
    if bool(args.save_words) != (args.vocabulary_input and bool(args.words)):
        parser.error(
            "with --vocabulary-input no words are folded in: --words goes with "
            "--save-words FILE.safetensors, which writes their vectors for it"
        )
    # what would fail after minutes fails now
    if args.size is not None:
        try:
            whole_number("--size", args.size, most=MAX_SIDE)
        except ValueError as error:
            parser.error(str(error))
    if args.save_words and not args.save_words.parent.is_dir():
        parser.error(f"{args.save_words}: expected a folder that exists")
    if args.out.suffix != ".onnx" or not args.out.parent.is_dir():
        parser.error(f"{args.out}: expected FILE.onnx in a folder that exists")
    return args


@sentences("export_onnx.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        model = (
            KDEOV.from_config(args.config, args.checkpoint)
            if args.config
            else KDEOV.from_checkpoint(args.checkpoint)
        ).model
        words = as_vocabulary(args.words) if args.words else None
        folded = None if args.vocabulary_input else words
        if isinstance(model, SegStudent):
            if args.nms or args.agnostic:
                raise ValueError(
                    "--nms and --agnostic are for boxes: a student of masks has none"
                )
            classes = model.seg_head.classes
            if folded is None and classes is not None:
                folded = as_vocabulary(classes)  # it answers for no others
            worst = dict(shares=export_masks(model, args.out, folded, args.size))
        elif isinstance(model, KDEOVDetector):
            # compares the file with PyTorch before it returns
            worst = export_onnx(
                model, args.out, folded, args.nms, args.size, args.agnostic
            )
        else:
            raise ValueError(
                "files are made of KDEOVDetectors and SegStudents, not of a "
                f"{type(model).__name__}"
            )
        if args.save_words and words is not None:
            words.embed(model.text_encoder).save(args.save_words)
    except (ValueError, OSError) as error:
        print(f"export_onnx.py: {error}", file=sys.stderr)
        return 2
    # what is in the file, and how far it is from PyTorch
    what = "any words" if folded is None else f"{len(folded)} words folded in"
    differences = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    print(
        f"{args.out}: {what}, {args.out.stat().st_size / 2**20:.1f} MiB; differs from "
        f"PyTorch by {differences} (boxes in pixels)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
