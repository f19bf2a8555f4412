"""Let a student label in your pictures what it knows, beside your own boxes.

    python tools/detect.py STUDENT.pth PICTURES --words WORDS --agnostic --no-drawings
    python tools/keep_words.py OWN.json work_dirs/detect/detections.json OUT.json

WORDS are those that a fine-tuning on OUT.json shall not forget; OUT.json is also a
vocabulary, of your classes and then of these (configs/kdeov/README.md).
"""

import argparse
import json
from collections.abc import Sequence

from kdeov_mm.border import given_path, real_number, sentences, taken_apart
from kdeov_mm.datasets.kept_words import with_found
from kdeov_mm.files import write_whole


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("own", type=given_path, help="your boxes, COCO JSON")
    parser.add_argument("found", type=given_path, help="detections.json")
    parser.add_argument("out", type=given_path, help="where both are written")
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="least score (default: 0.3)"
    )
    args = parser.parse_args(argv)
    with sentences("keep_words.py"):
        real_number("--threshold", args.threshold, 0.0, 1.0)
        own, found = (json.loads(p.read_text()) for p in (args.own, args.found))
        with taken_apart(
            f"{args.own} and {args.found} are no COCO JSON and detections"
        ):
            content, number = with_found(own, found, args.threshold)
        write_whole(args.out, json.dumps(content).encode())
    print(
        f"{args.out}: {len(own['annotations'])} boxes of {len(own['categories'])} "
        f"classes and {number} of the student's, {len(content['categories'])} words."
    )


if __name__ == "__main__":
    main()
