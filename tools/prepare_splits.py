"""Make the open-vocabulary splits of COCO and LVIS; see docs/data.md."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from kdeov_mm.datasets import splits
else:  # by its path: the package brings torch, larger in memory than most sources
    path = Path(__file__).parents[1] / "kdeov_mm/datasets/splits.py"
    spec = importlib.util.spec_from_file_location("splits", path)
    splits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(splits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.set_defaults(minival_ids=None)
    commands = parser.add_subparsers(dest="dataset", required=True)
    for dataset in splits.SPLITS:
        sources = " and ".join(dict.fromkeys(s.source for s in splits.SPLITS[dataset]))
        command = commands.add_parser(dataset, help=f"from {sources}")
        command.add_argument(
            "--root",
            type=Path,
            default=Path("data") / dataset,
            help=f"folder whose annotations/ has {sources} (default: %(default)s)",
        )
        if dataset == "lvis":
            command.add_argument(
                "--minival-ids",
                type=Path,
                metavar="FILE",
                help="image ids of LVIS minival: one per line, a JSON list, or an "
                "annotation file of these images, as COCO's instances_val2017.json",
            )
    args = parser.parse_args()
    folder = args.root / "annotations"
    try:
        splits.make_splits(args.dataset, folder, args.minival_ids, tqdm.write)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was not written whole is not there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
