"""Train a config: mm's command line over mmengine's Runner."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mmengine.runner import Runner

import kdeov_mm  # noqa: F401  (registers modules, applies compat)
from kdeov_mm.checkpoints import not_finite, read_checkpoint
from kdeov_mm.files import locked
from kdeov_mm.options import ConfigOptions, read_config_file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--work-dir",
        help="logs and checkpoints go here (default: work_dirs/CONFIG_NAME)",
    )
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)"
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate to the batch size",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="go on from CKPT, or from the latest checkpoint of the work dir",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        help="override config entries: key=value ...",
    )
    parser.add_argument(
        "--launcher", default="none", choices=["none", "pytorch", "slurm", "mpi"]
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    args = parser.parse_args(argv)
    # torch's launcher passes it as an argument, torchrun in the environment
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return args


def resume_from(given: str, work_dir: Path) -> str | None:
    """The checkpoint to go on from, read once; None where there is nothing yet."""
    if given == "auto":
        return latest_checkpoint(work_dir)
    if "://" not in given:  # mmengine's to fetch
        try:
            check_resumable(given)
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(
                f"--resume: {error}\nName another one: --resume CKPT."
            ) from error
    return given


def latest_checkpoint(work_dir: Path) -> str | None:
    """The one that ``last_checkpoint`` names, or else the newest that is whole."""
    pointer = work_dir / "last_checkpoint"
    if not pointer.exists():
        print(f"--resume: no last_checkpoint in {work_dir}, so it begins anew.")
        return None
    named = pointer.read_text().strip()
    if "://" in named:  # mmengine's to fetch
        return named
    # the named one, then the others, the newest first
    others = sorted(work_dir.glob("*.pth"), key=lambda p: p.stat().st_mtime)[::-1]
    errors = []
    for path in dict.fromkeys([named, *map(str, others)]):
        try:
            check_resumable(path)
        except (FileNotFoundError, ValueError) as error:
            errors.append(str(error))
            continue
        if errors:
            print(f"--resume: {errors[0]}. It goes on from {path}.", file=sys.stderr)
        return path
    raise SystemExit(
        f"--resume: {errors[0]}\n{pointer} names it. Go on from another one (--resume "
        f"CKPT), or delete {pointer} to begin anew."
    )


def check_resumable(path: str) -> None:
    """Refuse what is no checkpoint of a training.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, without what a training
            goes on from, has weights that are no numbers, or has a config that
            mmengine would run as Python.
    """
    content = read_checkpoint(path)
    if "config" in (content.get("meta") or {}):
        raise ValueError(
            f"{path} has a config in its meta['config'], which mmengine runs as code: "
            "it is no checkpoint of tools/train.py"
        )
    if missing := {"meta", "state_dict"} - {*content}:
        raise ValueError(
            f"{path} has no {sorted(missing)}: it is no checkpoint to go on from; "
            "load_from=CKPT begins anew with its weights"
        )
    if broken := not_finite(content["state_dict"]):
        raise ValueError(f"{path} has weights that are no numbers, e.g. {broken[:3]}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        cfg = read_config_file(args.config, args.cfg_options)
    except ValueError as error:
        raise SystemExit(f"train.py: {error}") from error
    cfg.launcher = args.launcher
    # the folder: of the command line, of the config, or named after it
    cfg.work_dir = (
        args.work_dir
        or cfg.get("work_dir")
        or str(Path("work_dirs") / Path(args.config).stem)
    )
    # precision and learning rate
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise SystemExit(
                f"--auto-scale-lr: {args.config} has no "
                "auto_scale_lr.base_batch_size; add it to the config"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        checkpoint = resume_from(args.resume, Path(cfg.work_dir))
        # without one, the training begins as the config says, load_from included
        if checkpoint is not None:
            cfg.resume, cfg.load_from = True, checkpoint
    # one training at a time in a folder; of several processes the first speaks for all
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if rank() == 0:
            try:
                stack.enter_context(locked(folder))
            except BlockingIOError as error:
                raise SystemExit(
                    f"train.py: another training writes to {folder}: wait for it, stop "
                    "it, or name another --work-dir."
                ) from error
        try:
            Runner.from_cfg(cfg).train()
        except FloatingPointError as error:
            raise SystemExit(f"train.py: {error}") from error


def rank() -> int:
    """The number of this process, of whichever launcher; 0 of a single one."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return int(next((os.environ[n] for n in names if n in os.environ), 0))


if __name__ == "__main__":
    main()
