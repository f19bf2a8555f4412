"""The mean of the weights before and after a fine-tuning (WiSE-FT).

    python tools/interpolate.py CONFIG AFTER.pth OUT.pth --part 0.5

AFTER.pth is what CONFIG was trained to, from its ``load_from``. More of the fine-tuning
(--part towards 1) knows the new classes better, less of it forgets less: test some.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)

import torch

from kdeov_mm.border import given_path, sentences
from kdeov_mm.checkpoints import load_model, read_checkpoint
from kdeov_mm.engine.interpolate import interpolate
from kdeov_mm.files import write_whole
from kdeov_mm.options import config_of


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of the fine-tuning")
    parser.add_argument("after", type=given_path, help="checkpoint of the fine-tuning")
    parser.add_argument("out", type=given_path, help="where the mean is written")
    parser.add_argument(
        "--before",
        type=given_path,
        help="what it began with (default: the config's load_from)",
    )
    parser.add_argument(
        "--part", type=float, default=0.5, help="of the fine-tuning (default: 0.5)"
    )
    args = parser.parse_args(argv)
    with sentences("interpolate.py"):
        mix(args.config, args.before, args.after, Path(args.out), args.part)


def mix(
    config: str, before: Path | None, after: Path, out: Path, part: float = 0.5
) -> None:
    """Write the mean of two checkpoints, with what else the second holds.

    Raises:
        FileNotFoundError: a checkpoint is not there.
        ValueError: one is of another model, or there is nothing to begin with.
    """
    cfg = config_of(config)
    before = before or cfg.get("load_from")
    if not before:
        raise ValueError(f"{config} has no load_from: give --before CHECKPOINT")
    # both as the model names its weights, whoever wrote the file
    first, last = (load_model(cfg, path).state_dict() for path in (before, after))
    content = read_checkpoint(after)
    # a mean is nothing to resume a training from, so it tells no step
    meta = dict(content.get("meta") or {}, interpolated=dict(part=part))
    meta = {key: value for key, value in meta.items() if key not in ("iter", "epoch")}
    held = dict(meta=meta, state_dict=interpolate(first, last, part))
    buffer = io.BytesIO()
    torch.save(held, buffer)
    write_whole(out, buffer.getvalue())


if __name__ == "__main__":
    main()
