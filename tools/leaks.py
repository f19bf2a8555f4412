"""Which novel classes had labels in what a checkpoint was trained on.

    python tools/leaks.py CONFIG CHECKPOINT [--pretraining objects365v1 imagenet-1k]

The novel classes are those of the config's test data. tools/test.py prints the same.
Ends with 0 when none had, 1 when some had, 2 when it cannot be told.
"""

import argparse
import sys
from collections.abc import Sequence

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)

from mmdet.registry import DATASETS

from kdeov_mm.border import built, sentences
from kdeov_mm.checkpoints import check_loaders
from kdeov_mm.evaluation import LABEL_SETS, describe_leaks, leak_report
from kdeov_mm.options import config_of
from kdeov_mm.vocabulary import asked_groups


@sentences("leaks.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--pretraining",
        nargs="*",
        choices=list(LABEL_SETS),
        help="label sets of the weights it began with (default: what its config says)",
    )
    args = parser.parse_args(argv)
    try:
        cfg = config_of(args.config)
        check_loaders(cfg, "test_dataloader")
        # only the metainfo is needed: no images, no annotations
        data = dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[])
        with built("the config's test data cannot be built"):
            novel = asked_groups(DATASETS.build(data).metainfo).get("novel")
        if not novel:
            parser.error(f"the test data of {args.config} name no novel classes")
        report = leak_report(args.checkpoint, novel, args.pretraining)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(describe_leaks(report))
    # None: its training is not known
    return {True: 0, False: 1, None: 2}[report["clean"]]


if __name__ == "__main__":
    sys.exit(main())
