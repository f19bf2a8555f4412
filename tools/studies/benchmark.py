"""How fast: ours against closed-set YOLOv8, in one run, in turn.

    python tools/studies/benchmark.py                        # CPU, about 10 minutes
    python tools/studies/benchmark.py --checkpoint work_dirs/demo/iter_1600.pth \\
        --ultralytics ultra/bin/python --table       # what the README shows

Every model sees the same picture of 640 px, batch 1, and they take turns, so that their
ratios hold on a noisy machine. Two figures for each: `network` is pixels to scores and
boxes; `whole` adds preprocessing and the suppression, at the thresholds of COCO's
evaluation (0.001, IoU 0.7, 300 boxes). Weights and words are random where no checkpoint
is named. Ultralytics' models run in an environment of their own, see
benchmark_ultralytics.py. Peak memory is of a process that runs that model alone.
Writes docs/benchmark.json and docs/benchmark.png; --table the table of the README.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
from mmengine.registry import init_default_scope

from benchmark_models import FOLDED, MANY, MMYOLO, TEST, WIDTH, entries, picture
from benchmark_parts import share_kept, time_training, time_vocabulary
from pages import ROOT, read_json, seconds_of, show, write_json

plt.switch_backend("Agg")
JSON = ROOT / "docs/benchmark.json"
README = ROOT / "README.md"
KINDS = ("network", "whole")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    init_default_scope("mmdet")
    if args.one is not None:
        return measure_one(args)
    report: dict[str, Any] = dict(machine=machine(args.device), size=args.side)
    report["command"] = command(args)
    # each part is printed and written when it is done: some take minutes
    parts: dict[str, Callable[[argparse.Namespace], Any]] = dict(
        speed=time_models,
        filter=share_kept,
        vocabulary=time_vocabulary,
        training=time_training,
    )
    kept = read_json(args.out, {}) if args.keep else {}
    for name in args.parts:
        report[name] = parts[name](args)
        print(json.dumps({name: report[name]}, indent=1), flush=True)
        # an error of the next part loses nothing
        write_json(args.out, report := kept | report)
    if "speed" in report:
        plot(report, args.out.with_suffix(".png"))
    if args.table:
        show(README, "benchmark", table(report))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a trained detector, besides")
    parser.add_argument("--sizes", nargs="+", default=["n", "s"], choices=["n", "s"])
    parser.add_argument("--words", type=int, nargs="+", default=[80, 1203, 13000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scenes", type=int, default=20, help="for --parts filter")
    parser.add_argument("--side", type=int, default=640, help="pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--half", action="store_true", help="ours and ultralytics', on a GPU"
    )
    parser.add_argument("--ultralytics", help="python of an environment that has it")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["speed", "filter", "vocabulary", "training"],
        choices=["speed", "filter", "vocabulary", "training"],
    )
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--out", type=Path, default=JSON)
    parser.add_argument("--keep", action="store_true", help="other parts of --out stay")
    parser.add_argument("--table", action="store_true", help="fill the README's table")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side % 32 or args.rounds < 2:
        parser.error("--side is a multiple of 32, --rounds at least 2")
    if args.half and args.device == "cpu":
        parser.error("--half needs a GPU: --device cuda")
    if args.checkpoint and not args.checkpoint.is_file():
        parser.error(f"--checkpoint {args.checkpoint} does not exist")
    return args


def command(args: argparse.Namespace) -> str:
    """What was asked for, without this machine's places."""
    given = "python tools/studies/benchmark.py"
    given += f" --rounds {args.rounds} --device {args.device}"
    given += " --half" if args.half else ""
    given += f" --checkpoint {args.checkpoint}" if args.checkpoint else ""
    return given + (" --ultralytics ultra/bin/python" if args.ultralytics else "")


def machine(device: str) -> str:
    """What the figures were measured on, in words."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return (
        f"{torch.get_num_threads()} threads, {platform.machine()}, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )


class Peer:
    """Ultralytics' models, in their own environment."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.process = subprocess.Popen(
            [args.ultralytics, ROOT / "tools/studies/benchmark_ultralytics.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=scratch,
            env={**os.environ, "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"},
        )
        np.save(scratch / "picture.npy", picture(args.side))
        settings = dict(
            image=str(scratch / "picture.npy"),
            threads=torch.get_num_threads(),
            size=args.side,
            score_threshold=TEST["score_thr"],
            iou_threshold=0.7,
            most=TEST["max_per_img"],
            device=args.device,
            half=args.half,
        )
        self.version = self.ask(settings=settings)["version"]
        self.number = 0

    def ask(self, **question: Any) -> dict[str, Any]:
        """A question, and its answer."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("benchmark:"):
                return json.loads(line.removeprefix("benchmark:"))
        raise SystemExit(
            "the environment of --ultralytics failed; its message is above"
        )

    def add(self, file: str, words: int) -> list[Callable[[], float]]:
        """Build a model; its calls, which return seconds."""
        self.ask(build=[file, words])
        number, self.number = self.number, self.number + 1
        return [partial(self._seconds, number, kind) for kind in (0, 1)]

    def _seconds(self, number: int, kind: int) -> float:
        return self.ask(run=[number, kind])["seconds"]


def peers(args: argparse.Namespace) -> Iterator[tuple[str, str, int, str]]:
    """Name, size, words and file of ultralytics' models."""
    for size in args.sizes:
        yield "ultralytics YOLOv8", size, 80, f"yolov8{size}.yaml"
        yield "YOLO26", size, 80, f"yolo26{size}.yaml"
        for number in (k for k in args.words if k <= MANY):
            yield "YOLO-World v2", size, number, f"yolov8{size}-worldv2.yaml"
            yield "YOLOE", size, number, f"yoloe-v8{size}.yaml"
            yield "YOLOE, folded", size, number, f"yoloe-v8{size}.yaml folded"
            yield "YOLOE-26, folded", size, number, f"yoloe-26{size}.yaml folded"


def time_models(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: milliseconds, median and quartiles of both kinds, and peak memory."""
    rows: list[dict[str, Any]] = []
    runs: list[list[Callable[[], float]]] = []  # of each row, both kinds
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # build: ours and mmyolo's in this process, ultralytics' in theirs
        for entry in entries(args, scratch):
            calls = entry.make()
            rows.append(dict(name=entry.name, size=entry.size, words=entry.words))
            runs.append([partial(seconds_of, call) for call in calls])
            print(f"built {rows[-1]}: {calls[1]()} boxes", flush=True)
        number_here = len(rows)
        if args.ultralytics:
            peer = Peer(args, scratch)
            for name, size, words, file in peers(args):
                rows.append(dict(name=name, size=size, words=words))
                runs.append(peer.add(file, words))
                print(f"built {rows[-1]} of ultralytics {peer.version}", flush=True)

        # time in turn; the first turn is a warm-up
        times: list[list[list[float]]] = [[[], []] for _ in runs]
        for turn in range(args.rounds + 1):
            for calls_of_row, times_of_row in zip(runs, times):
                for timed, seconds in zip(calls_of_row, times_of_row):
                    timed()  # threads of the one before may still be spinning
                    seconds.append(timed())
            print(f"turn {turn} of {args.rounds}", flush=True)
        for row, times_of_row in zip(rows, times):
            for kind, seconds in zip(KINDS, times_of_row):
                quartiles = statistics.quantiles(seconds[1:], n=4)
                row[kind] = [round(1000 * value, 2) for value in quartiles]

        if not args.no_memory:
            for number, row in enumerate(rows[:number_here]):
                row["memory"] = peak_memory(args, scratch, number)
    return rows


def peak_memory(args: argparse.Namespace, scratch: Path, number: int) -> float:
    """MiB that an entry takes in a process of its own, above what its libraries do."""
    command = [sys.executable, __file__, "--one", str(number), "--side", str(args.side)]
    command += ["--device", args.device, "--words", *map(str, args.words)]
    command += ["--sizes", *args.sizes, "--out", str(scratch)]
    command += ["--half"] if args.half else []
    if args.checkpoint:
        command += ["--checkpoint", str(args.checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def measure_one(args: argparse.Namespace) -> int:
    """Print the peak memory of an entry, in MiB."""
    entry = entries(args, args.out)[args.one]
    before = resident("VmRSS")
    calls = entry.make()
    for _ in range(3):
        calls[1]()
    if args.device == "cpu":
        print(round(resident("VmHWM") - before))
    else:
        print(round(torch.cuda.max_memory_allocated() / 2**20))
    return 0


def resident(key: str) -> float:
    """MiB of this process in memory: now (VmRSS), or at most since it began (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(f"this system does not tell {key}")


def table(report: dict[str, Any]) -> str:
    """The README's table: the whole way, and what it is of closed-set YOLOv8's."""
    rows = report["speed"]
    sizes = [size for size in WIDTH if any(row["size"] == size for row in rows)]
    heads = [f"YOLOv8-{size}, ms | of closed-set" for size in sizes]
    lines = ["| | words | " + " | ".join(heads) + " | peak memory, MiB |"]
    lines.append("|---" * (3 + 2 * len(sizes)) + "|")
    # a line for each model and number of words, two columns for each size
    names = dict.fromkeys((row["words"], row["name"]) for row in rows)
    for words, name in sorted(names, key=lambda key: key[0]):
        cells, memory = [], []
        for size in sizes:
            own = {(r["words"], r["name"]): r for r in rows if r["size"] == size}
            row = own.get((words, name))
            if row is None:
                cells += ["", ""]
                continue
            low, middle, high = row["whole"]
            ratio = middle / own[80, MMYOLO]["whole"][1]
            cells += [f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{ratio:.2f}"]
            memory += [str(row["memory"])] if "memory" in row else []
        # ours in bold
        label = f"**{name}**" if name.startswith(FOLDED) else name
        cells = [label, f"{words:,}", *cells, ", ".join(memory)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of the whole way of a picture, both sizes."""
    sizes = [s for s in WIDTH if any(row["size"] == s for row in report["speed"])]
    most = max(sum(r["size"] == s for r in report["speed"]) for s in sizes)
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(6.4 * len(sizes), 0.26 * most + 1), squeeze=False
    )
    for axis, size in zip(axes[0], sizes):
        rows = [row for row in report["speed"] if row["size"] == size]
        rows.sort(key=lambda row: -row["whole"][1])
        colors = [
            "#d55e00" if r["name"].startswith("ours") else "#999999" for r in rows
        ]
        # bars are medians, whiskers the quartiles
        middle = [row["whole"][1] for row in rows]
        spread = np.abs([np.subtract(r["whole"][::2], r["whole"][1]) for r in rows]).T
        labels = [f"{row['name']}, {row['words']:,} words" for row in rows]
        axis.barh(labels, middle, xerr=spread, color=colors, ecolor="#555555")
        axis.set_title(f"YOLOv8-{size}, {report['size']} px, ms per picture")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
