"""What the studies share: results as JSON, tables in pages, where figures come from."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kdeov_mm.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "mmengine", "mmdet", "mmyolo", "open_clip_torch")


def read_json(path: Path, default: Any) -> Any:
    """The content of a file; the default where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else default


def write_json(path: Path, content: Any) -> None:
    """Write a file atomically, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def marks(name: str) -> tuple[str, str]:
    """The two comments in a page between which the part ``name`` is generated."""
    return f"<!-- begin {name} -->\n", f"<!-- end {name} -->"


def shown(page: Path, name: str) -> str:
    """The generated part of a page."""
    begin, end = marks(name)
    return page.read_text().split(begin)[1].split(end)[0]


def show(page: Path, name: str, table: str) -> None:
    """Renew the generated part of a page.

    Raises:
        ValueError: the page has not both marks, once each.
    """
    begin, end = marks(name)
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} needs {begin.strip()!r} and {end!r}, once each")
    before, rest = text.split(begin)
    page.write_text(f"{before}{begin}{table}{end}{rest.split(end)[1]}")


def provenance(*generated: Path | str) -> dict[str, Any]:
    """Commit, versions and hardware; ``generated`` files may have changed."""
    others = [f":!{os.path.relpath(ROOT / path, ROOT)}" for path in generated]
    changed = git("status", "--short", "--", ".", *others)
    return dict(
        commit=git("rev-parse", "HEAD") + ("+changes" if changed else ""),
        versions={name: version(name) for name in PACKAGES},
        python=platform.python_version(),
        hardware=hardware(),
    )


def git(*args: str) -> str:
    """Output of a git command in the project; empty outside a repository."""
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def hardware() -> str:
    """GPU, or processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor()}, {os.cpu_count()} cores"


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes, on the CPU or a GPU."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_in_turn(
    calls: Sequence[Callable[[], Any]], rounds: int, warmup: int
) -> list[list[float]]:
    """Seconds of functions called in turn: ratios of them hold on a noisy machine.

    Returns:
        For each function, ``rounds`` values; those of the warm-up are left out.
    """
    turns = [[seconds_of(call) for call in calls] for _ in range(warmup + rounds)]
    return [list(values) for values in zip(*turns[warmup:])]
