"""Look for what makes a training fail, before it runs.

    python tools/doctor.py CONFIG

Builds the config, passes a few batches through pipeline, student and losses, and
reports what it finds. Exit code 0: nothing wrong; 1: something is, with its likely
cause and the fix. What a config does on purpose it can accept:
``doctor = dict(accept=["novel boxes"])`` in the config.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import set_random_seed

from kdeov_mm.border import sentences, taken_apart
from kdeov_mm.checkpoints import check_loaders
from kdeov_mm.engine.doctor import ADVICE, Finding, examine
from kdeov_mm.options import config_of


def as_dict(model: Any) -> dict[str, Any]:
    return model if isinstance(model, dict) else {}


@sentences("doctor.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="training config")
    parser.add_argument("--batches", type=int, default=3, help="batches to look at")
    args = parser.parse_args(argv)
    if args.batches < 1:
        parser.error("--batches needs at least one")
    # other configs are not wrong: they are none for the doctor
    try:
        cfg = config_of(args.config)
        if not cfg.get("train_dataloader"):
            parser.error(f"{args.config} has no train_dataloader")
        check_loaders(cfg, "train_dataloader")
        with taken_apart("doctor = dict(accept=[...]) is expected"):
            accepted = set(cfg.get("doctor", {}).get("accept", ()))
    except (OSError, ValueError) as error:
        parser.error(f"{args.config}: {error}")
    if not {"bbox_head", "roi_head"} & {*as_dict(cfg.get("model"))}:
        parser.error(f"{args.config} has no head of boxes: only detectors are examined")

    set_random_seed(0)  # of the pipeline, too: the same report each time
    # mmengine's log lists all weights
    MMLogger.get_instance("doctor", log_level="ERROR")
    # observations at once, findings together at the end
    findings: list[Finding] = []
    for seen in examine(cfg, args.batches):
        if isinstance(seen, Finding):
            findings.append(seen)
        else:
            print(seen)

    for finding in findings:
        mark = "accepted by the config" if finding.name in accepted else "WRONG"
        print(f"\n{mark}: {finding.name}\n  {finding.what}")
        advice = ADVICE[finding.name]
        print(f"  Likely cause: {advice['cause']}\n  Fix: {advice['fix']}")
    wrong = sum(finding.name not in accepted for finding in findings)
    print(
        f"\n{wrong} things are wrong."
        if wrong
        else "\nNothing is wrong in what was looked at."
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
