"""Train a config: mm's command line over mmengine's Runner."""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

import kdeov_mm  # noqa: F401  (registers modules, applies compat)
from kdeov_mm.border import built, sentences, taken_apart, whole_number
from kdeov_mm.checkpoints import (
    check_loaders,
    check_weights,
    not_finite,
    read_checkpoint,
)
from kdeov_mm.engine.heartbeat import HeartbeatHook, lost_connections
from kdeov_mm.files import locked
from kdeov_mm.options import ConfigOptions, config_of, work_dir_of


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
    missing = {"meta", "state_dict"} - {*content}
    missing = missing or {"epoch", "iter"} - {*(content["meta"] or {})}
    if missing:
        raise ValueError(
            f"{path} has no {sorted(missing)}: it is no checkpoint to go on from; "
            "load_from=CKPT begins anew with its weights"
        )
    for key in ("epoch", "iter"):
        whole_number(f"{path}: meta[{key!r}]", content["meta"][key], least=0)
    for key in ("state_dict", "ema_state_dict"):
        state = content.get(key, {})
        if not isinstance(state, Mapping):
            raise ValueError(f"{path}: expected weights in {key}, got {state!r:.80}")
        if broken := not_finite(state):
            raise ValueError(
                f"{path} has weights that are no numbers, e.g. {broken[:3]}"
            )


def check_schedule(cfg: Config) -> None:
    """Say where the learning rate was planned for another number of iterations."""
    schedulers = cfg.get("param_scheduler")
    if not isinstance(schedulers, list):
        return
    # a warm-up or steps alone end nothing
    planned = [
        s["end"]
        for s in schedulers
        if isinstance(s, dict) and {"T_max", "end"} <= {*s} and not s.get("by_epoch")
    ]
    number = (cfg.get("train_cfg") or {}).get("max_iters")
    if number and planned and number != max(planned):
        print(
            f"train.py: train_cfg.max_iters is {number}, and the schedule of the "
            f"learning rate (param_scheduler) is for {max(planned)} iterations: the "
            "rate is that of the longer training, or stays where the schedule ends.",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with sentences("train.py"):
        with built("--cfg-options"):
            cfg = config_of(args.config, args.cfg_options)
        check_loaders(cfg, "train_dataloader")
        check_schedule(cfg)
        cfg.work_dir = work_dir_of(args.config, cfg, args.work_dir)
        weights = cfg.get("load_from")
        if weights and "://" not in str(weights):  # mmengine's to fetch
            read_checkpoint(weights)
    cfg.launcher = args.launcher
    # precision and learning rate; a GPU multiplies what is float32 in TF32
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
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
    if args.resume is not None:
        checkpoint = resume_from(args.resume, Path(cfg.work_dir))
        # without one, the training begins as the config says, load_from included
        if checkpoint is not None:
            cfg.resume, cfg.load_from = True, checkpoint
    # one training at a time in a folder; of several processes the first speaks for all
    with sentences("train.py"):
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
        with sentences("train.py", folder):
            runner = make_runner(cfg)
            runner.register_hook(HeartbeatHook())
            with lost_connections():
                runner.train()


class Training(Runner):
    """mmengine's, which says of a checkpoint that it cannot be gone on from."""

    def load_or_resume(self) -> None:
        """Load or resume the checkpoint, once.

        Raises:
            ValueError: parts of it have another form, or are of another training.
        """
        with taken_apart(f"a training cannot begin with {self._load_from}"):
            super().load_or_resume()
            if self._resume:
                check_optimizer(self.optim_wrapper)


def check_optimizer(wrapper: Any) -> None:
    """Refuse what an optimizer took from a checkpoint and cannot step with.

    Raises:
        ValueError: settings that are no numbers, or another state than its weights'.
    """
    optimizers = wrapper.values() if isinstance(wrapper, Mapping) else [wrapper]
    for optimizer in (own.optimizer for own in optimizers):
        for group in optimizer.param_groups:
            # each group has what the optimizer's class has for all
            for key, default in optimizer.defaults.items():
                if not alike(group.get(key), default):
                    raise ValueError(
                        f"its optimizer has {key}={group.get(key)!r:.80}, expected one "
                        f"like {default!r}"
                    )
        states = optimizer.state.items()
        keys = {frozenset(state) for _, state in states}
        shapes = [
            value.shape in (weight.shape, ())
            for weight, state in states
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        if len(keys) > 1 or not all(shapes):
            raise ValueError("its optimizer has the state of other weights")


def alike(value: Any, default: Any) -> bool:
    """Whether a setting of an optimizer is of the default's kind."""
    if isinstance(default, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(default)
        return same and all(map(alike, value, default))
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and math.isfinite(value)
    return True


def make_runner(cfg: Config) -> Runner:
    """A runner with its data and its optimizer, as the training begins with them."""
    with built("the config cannot be built"):
        runner = Training.from_cfg(cfg)
        # in the order of Runner.train
        assert runner.train_loop is not None
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    # what is resumed is of this model
    if cfg.get("resume") and "://" not in str(cfg.load_from):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_weights(model, read_checkpoint(cfg.load_from), cfg.load_from)
    return runner


def rank() -> int:
    """The number of this process, of whichever launcher; 0 of a single one."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return int(next((os.environ[n] for n in names if n in os.environ), 0))


if __name__ == "__main__":
    main()
