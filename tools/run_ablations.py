"""Train and test rows of the ablation table, and write the tables.

    python tools/run_ablations.py                 # all rows, two seeds: hours
    python tools/run_ablations.py CONFIG ... --seeds 0 1 2
    python tools/run_ablations.py --quick         # two iterations: does it run?
    python tools/run_ablations.py --time          # step and inference times
    python tools/run_ablations.py --tables        # write the tables, run nothing

One process at a time, through tools/train.py and tools/test.py. A finished run is
kept in the results file, by row, seed and the hash of its config, and is not run
again; an interrupted one goes on at its latest checkpoint.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmengine.config import Config

from kdeov_mm.evaluation import newest_figures

ROOT = Path(__file__).resolve().parents[1]
LEAVES = ROOT / "configs/kdeov/ablations"
RESULTS = LEAVES / "results.json"
PACKAGES = ("torch", "mmengine", "mmdet", "mmyolo", "open_clip_torch")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="leaves (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/ablations"))
    parser.add_argument(
        "--quick", action="store_true", help="two iterations, results in the work dir"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.work_dir /= "quick"
        args.results = args.work_dir / "results.json"
    configs = [c.resolve() for c in args.configs] or sorted(LEAVES.glob("*.py"))
    jobs = [(c, s) for s in args.seeds for c in configs]
    for number, (config, seed) in enumerate(jobs, 1):
        done = read_results(args.results)["runs"]
        key = run_key(config, seed)
        if any(key.items() <= run.items() for run in done):
            continue
        print(f"[{number}/{len(jobs)}] {key['config']}, seed {seed}", flush=True)
        result = key | run_one(config, seed, args.work_dir, args.quick)
        add_run(args.results, result)
        print(f"    {summary(result)}", flush=True)


def run_key(config: Path, seed: int) -> dict[str, Any]:
    """What makes two runs the same: config file, its content, seed."""
    return dict(
        config=str(config.relative_to(ROOT)),
        config_sha256=config_hash(config),
        seed=seed,
    )


def config_hash(config: Path) -> str:
    """SHA-256 of the resolved config, its bases merged."""
    content = Config.fromfile(config, lazy_import=False).to_dict()
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(path: Path) -> dict[str, Any]:
    """``runs``, one entry a run, and ``times``, one entry a config."""
    if not path.exists():
        return dict(runs=[], times=[])
    return json.loads(path.read_text())


def add_run(path: Path, run: dict[str, Any]) -> None:
    """Add a run; it takes the place of one of an older config, same row and seed."""
    results = read_results(path)
    results["runs"] = [
        r
        for r in results["runs"]
        if (r["config"], r["seed"]) != (run["config"], run["seed"])
    ]
    results["runs"].append(run)
    results["runs"].sort(key=lambda r: (r["config"], r["seed"]))
    write_json(path, results)


def write_json(path: Path, content: Any) -> None:
    """Write a file; a reader sees the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)


def run_one(config: Path, seed: int, work_dir: Path, quick: bool) -> dict[str, Any]:
    """Train and test one row; its figures and where they come from."""
    folder = work_dir / config.stem / f"seed{seed}"
    commit = git("rev-parse", "HEAD") + ("+changes" if git("status", "-s") else "")
    cfg = Config.fromfile(config, lazy_import=False)
    for command in cfg.get("prepare", ()):
        call(*shlex.split(command))
    options = [f"randomness.seed={seed}"]
    if quick:
        options += ["train_cfg.max_iters=2", "test_dataloader.dataset.indices=8"]
    resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
    arguments = ["--work-dir", folder, *resume, "--cfg-options", *options]
    started = time.time()
    call("tools/train.py", config, *arguments)
    seconds = time.time() - started
    checkpoint = (folder / "last_checkpoint").read_text().strip()
    arguments = ["--work-dir", folder / "eval", "--cfg-options", *options]
    call("tools/test.py", config, checkpoint, *arguments)
    figures = newest_figures(folder / "eval")
    return dict(
        figures={k.removeprefix("ov/"): v for k, v in figures.items() if "ov/" in k},
        iterations=2 if quick else cfg.train_cfg.max_iters,
        batch_size=cfg.train_dataloader.batch_size,
        train_seconds=None if resume else round(seconds),
        protocol=cfg.test_evaluator.protocol,
        commit=commit,
        versions={name: version(name) for name in PACKAGES},
        python=platform.python_version(),
        hardware=hardware(),
    )


def call(script: str, *args: Any) -> None:
    """Run one of the project's tools, its output to a log beside the work dirs."""
    done = subprocess.run(
        [sys.executable, script, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"{script} {' '.join(map(str, args))}\nfailed with exit code "
            f"{done.returncode}; its last lines:\n{done.stdout[-3000:]}"
        )


def git(*args: str) -> str:
    """Output of a git command in the project; empty outside a repository."""
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def hardware() -> str:
    """GPU, or processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor()}, {os.cpu_count()} cores"


def summary(run: dict[str, Any]) -> str:
    """A run in one line."""
    keys = ("base_AP50", "combo_AP50", "novel_AP50", "AP")
    return ", ".join(f"{key} {run['figures'][key]:.3f}" for key in keys)


if __name__ == "__main__":
    main()
