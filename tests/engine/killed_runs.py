"""Trainings through tools/train.py, one after the other, some of which are killed.

``python -m tests.engine.killed_runs JOBS``: JSON, a list of (arguments of
tools/train.py, moment or None). Each runs in a fork of a process that has imported
everything and computed nothing. Prints one line of JSON: the signals that ended them.

A moment is (what, number): "step", "loss" and "validation" by the iteration; "half",
"written", "renamed" and "named" by the step of the checkpoint: half of it is on the
disk; all of it, under a scratch name; under its own; and `last_checkpoint` names it.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import kdeov_mm.engine.hooks as hooks  # isort: skip  (compat comes first)

from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ..conftest import load_tool

MOMENT: list[Any] = []


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit("still alive")


@HOOKS.register_module()
class KillAt(Hook):
    """Kill the process at its moment."""

    priority = "LOWEST"

    def before_train(self, runner: Any) -> None:
        write, path_of = hooks.write_whole, f"iter_{MOMENT[1]}.pth" if MOMENT else ""

        def watched(path: Path, data: bytes) -> None:
            names_it = data.endswith(path_of.encode()) and path.suffix != ".pth"
            if not MOMENT or not (path.name == path_of or names_it):
                return write(path, data)
            if path.name == path_of and MOMENT[0] in ("half", "written"):
                part = data[: len(data) // 2] if MOMENT[0] == "half" else data
                path.with_name(f"{path.name}.1-2.tmp").write_bytes(part)
                die()
            write(path, data)
            if MOMENT[0] == ("named" if names_it else "renamed"):
                die()

        hooks.write_whole = watched

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if ["step", runner.iter] == MOMENT:
            die()
        if ["loss", runner.iter] == MOMENT:  # between forward and backward
            runner.optim_wrapper.update_params = lambda loss: die()

    def after_val_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if ["validation", runner.iter] == MOMENT:
            die()


def main(jobs: list[tuple[list[str], list[Any] | None]]) -> list[int]:
    train, ends = load_tool("train"), []
    for arguments, moment in jobs:
        child = os.fork()
        if child == 0:
            MOMENT.extend(moment or [])
            status = 1
            try:
                train.main(arguments)
                status = 0
            finally:  # nothing of the fork runs on
                if status:
                    traceback.print_exc()
                os._exit(status)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return ends


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
