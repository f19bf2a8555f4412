"""Train and test rows of the ablation table, and write the tables.

    python tools/studies/run_ablations.py                 # all rows, two seeds: hours
    python tools/studies/run_ablations.py CONFIG ... --seeds 0 1 2
    python tools/studies/run_ablations.py --jobs 2        # two runs at a time
    python tools/studies/run_ablations.py --quick         # two iterations: does it run?
    python tools/studies/run_ablations.py --time          # step and inference times
    python tools/studies/run_ablations.py --tables     # write the tables, run nothing

Through tools/train.py and tools/test.py. A finished run is kept in the results file,
by row, seed and the hash of its config, and is not run again; an interrupted one goes
on at its latest checkpoint.
"""

import argparse
import ast
import concurrent.futures
import copy
import hashlib
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from kdeov_mm.clip import CachedTeacher
from kdeov_mm.clip.source import file_sha256
from kdeov_mm.evaluation import newest_metrics
from pages import ROOT, provenance, read_json, seconds_in_turn, show, write_json

LEAVES = ROOT / "configs/kdeov/ablations"
VILD = ROOT / "configs/vild"
SEG = ROOT / "configs/seg"
RESULTS = LEAVES / "results.json"
PLAIN = ROOT / "configs/_base_/models/yolov8_n.py"
TABLES = (  # page and its marks
    ("configs/kdeov/README.md", "ablations"),
    ("configs/kdeov/README.md", "hard"),
    ("configs/vild/README.md", "ablations"),
    ("configs/seg/README.md", "ablations"),
    ("README.md", "ablations"),
)
PAGES = tuple(dict.fromkeys(page for page, _ in TABLES))
GROUPS = ("base", "combo", "novel")
NOT = "not measured"
ROWS = (
    "none",
    "seed",
    "global_cosine",
    "global_contrast",
    "feature_alignment",
    "dense_patches",
    "dense_windows",
    "local_attention",
    "region_cosine",
    "region_l1",
    "region_contrast",
    "region_relation",
    "region_truth",
    "region_blocks",
    "region_cached",
    "region_background",
    "default",
    "fusion_film",
    "fusion_class_film",
    "fusion_class_film_shift",
    "fusion_attention",
    "head_light",
    "neck_light",
    "norm_bn",
    "norm_bn_film",
    "norm_gn",
    "norm_gn_film",
    "norm_gn_l2",
    "norm_gn_l2_film",
    "backbone_yolov5",
    "backbone_yolov5_s",
    "backbone_resnet50",
    "backbone_efficientnet_b0",
    "oracle",
)
HARD = (
    "hard/none",
    "hard/dense_patches",
    "hard/l1",
    "hard/cosine",
    "hard/relation",
    "hard/contrast",
    "hard/words",
    "kdeov_n_shapes_hard",
    "hard/cached",
    "hard/joint",
    "hard/vild",
    "hard/trust_scales",
    "hard/trust_words",
    "hard/min_side",
    "hard/class_film",
    "hard/oracle",
)
TWO_STAGES = (
    "vild_text_r18_shapes",
    "vild_image_r18_shapes",
    "vild_r18_shapes",
    "vild_ensemble_r18_shapes",
    "vild_stored_r18_shapes",
    "vild_kdeov_r18_shapes",
    "vild_oracle_r18_shapes",
    "vild_r50_shapes",
)
MASKS = (
    "seg_shapes_none",
    "seg_shapes_global",
    "seg_shapes_local",
    "seg_shapes_document",
    "seg_shapes_dense",
    "seg_shapes",
    "seg_shapes_oracle",
    "seg_shapes_none_10",
    "seg_shapes_document_10",
    "seg_shapes_10",
    "seg_shapes_none_1",
    "seg_shapes_document_1",
    "seg_shapes_1",
    "seg_shapes_hard_none",
    "seg_shapes_hard",
    "seg_shapes_hard_oracle",
)
SHORT = {
    "none": "no distillation",
    "seed": "the original KDEOV design",
    "feature_alignment": "its FeatureAlignment loss on this detector",
    "region_l1": "crops, ViLD's L1",
    "default": "**crops, cosine and relations: the default**",
    "region_cached": "crops, the teacher read from a store",
    "vild_ensemble_r18_shapes": "ViLD-ensemble: two stages, ResNet-18",
    "oracle": "ceiling: novel boxes given",
    "hard/none": "hard world, no distillation",
    "kdeov_n_shapes_hard": "**hard world, the default**",
    "hard/oracle": "hard world, ceiling: novel boxes given",
}
NO_PART_OF_A_RUN = ("doctor", "find_unused_parameters")
CHECKS = ("words", "data")  # hooks that refuse or warn, and change no number
# quicker parts that give the same numbers as those that a result was measured with
SAME = {
    "BatchPreprocessor": "DetDataPreprocessor",
    "mmdet.TaskAligner": "mmyolo.BatchTaskAlignedAssigner",
    "NamesVisualizer": "DetLocalVisualizer",
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="leaves (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, which share the processor's cores (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/ablations"))
    parser.add_argument(
        "--quick", action="store_true", help="two iterations, results in the work dir"
    )
    parser.add_argument("--time", action="store_true", help="measure times only")
    parser.add_argument("--tables", action="store_true", help="write tables only")
    args = parser.parse_args(argv)
    # where results go: quick runs are no results
    if args.quick:
        args.work_dir /= "quick"
        args.results = args.work_dir / "results.json"
    args.work_dir = args.work_dir.resolve()  # the tools run in the project's folder
    configs = [c.resolve() for c in args.configs] or [
        page_of(row) for row in (*ROWS, *HARD, *TWO_STAGES, *MASKS)
    ]
    if args.time:
        measure_times(configs, args)
    elif not args.tables:
        run_all(configs, args)
    if args.results.resolve() == RESULTS:
        write_tables(read_results(args.results))


def run_all(configs: Sequence[Path], args: argparse.Namespace) -> None:
    """Train and test what the results file does not have yet."""
    jobs = [(c, s) for s in args.seeds for c in configs]
    # processes that share cores must not have a thread on each of them
    if args.jobs > 1:
        threads = max((os.cpu_count() or 1) // args.jobs, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    lock = threading.Lock()

    def run(number: int, config: Path, seed: int) -> None:
        done = read_results(args.results)["runs"]
        key = run_key(config, seed)
        if any(key.items() <= run.items() for run in done):
            return
        name = f"[{number}/{len(jobs)}] {key['config']}, seed {seed}"
        print(name, flush=True)
        if args.quick and "prepare" in Config.fromfile(config, lazy_import=False):
            print("    left out: it needs another row's finished run", flush=True)
            return
        result = key | run_one(config, seed, args.work_dir, args.quick)
        with lock:
            put(args.results, "runs", result)
        print(f"{name}: {summary(result)}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, i, *job) for i, job in enumerate(jobs, 1)]
        try:
            for each in concurrent.futures.as_completed(runs):
                each.result()
        # the first that fails ends the program, once those that run have ended
        finally:
            pool.shutdown(cancel_futures=True)


def measure_times(configs: Sequence[Path], args: argparse.Namespace) -> None:
    """Step and inference times beside a plain YOLOv8n, in turn on the same batch."""
    for number, config in enumerate(configs, 1):
        cfg = Config.fromfile(config, lazy_import=False)
        prepare(cfg, args.work_dir)
        times = compare_with_plain(cfg)
        key = {k: v for k, v in run_key(config, 0).items() if k != "seed"}
        put(args.results, "times", key | times | provenance(RESULTS, *PAGES))
        print(
            f"[{number}/{len(configs)}] {key['config']}: step {times['step']:.3f}, "
            f"inference {times['inference']:.3f}",
            flush=True,
        )


def run_key(config: Path, seed: int) -> dict[str, Any]:
    """What makes two runs the same: config file, its content, seed."""
    return dict(
        config=str(config.relative_to(ROOT) if config.is_relative_to(ROOT) else config),
        config_sha256=config_hash(config),
        seed=seed,
    )


def config_hash(config: Path) -> str:
    """SHA-256 of the resolved config, its bases merged, and of what it begins with."""
    content = Config.fromfile(config, lazy_import=False).to_dict()
    for key in NO_PART_OF_A_RUN:
        content.pop(key, None)
    for key in CHECKS:
        content.get("default_hooks", {}).pop(key, None)
    # the end of a schedule, which mmengine takes from the number of iterations
    for scheduler in content.get("param_scheduler") or []:
        if scheduler.get("end") == scheduler["begin"] + scheduler.get("T_max", -1):
            del scheduler["end"]
    text = json.dumps(content, sort_keys=True, default=str)
    for new, old in SAME.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    # other weights of the same name are another start
    backbone = content.get("model", {}).get("backbone", {})
    start = (backbone.get("init_cfg") or {}).get("checkpoint", "")
    if (file := ROOT / start).is_file():
        text += file_sha256(file)
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(path: Path) -> dict[str, Any]:
    """``runs``, one entry a run, and ``times``, one entry a config."""
    return read_json(path, dict(runs=[], times=[]))


def put(path: Path, kind: str, entry: dict[str, Any]) -> None:
    """Add a run or a time; it takes the place of an older one of its row and seed."""
    results = read_results(path)

    def place(e: dict[str, Any]) -> tuple[str, int]:
        return e["config"], e.get("seed", 0)

    kept = [e for e in results[kind] if place(e) != place(entry)]
    results[kind] = sorted([*kept, entry], key=place)
    write_json(path, results)


def run_one(config: Path, seed: int, work_dir: Path, quick: bool) -> dict[str, Any]:
    """Train and test one row; its figures and where they come from."""
    folder = run_folder(config, seed, work_dir)
    # where it comes from, before hours of training in which files may change
    origin = provenance(RESULTS, *PAGES)
    cfg = Config.fromfile(config, lazy_import=False)
    prepare(cfg, work_dir)
    # one seed for all; quick: two iterations
    options = [f"randomness.seed={seed}"]
    if quick:
        options += ["train_cfg.max_iters=2", "param_scheduler=None"]
        options += ["test_dataloader.dataset.indices=8"]
    # train: an interrupted run continues, and then has no time of its own
    resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
    arguments = ["--work-dir", folder, *resume, "--cfg-options", *options]
    started = time.time()
    call("tools/train.py", config, *arguments)
    seconds = time.time() - started
    # test the last checkpoint
    checkpoint = (folder / "last_checkpoint").read_text().strip()
    arguments = ["--work-dir", folder / "eval", "--cfg-options", *options]
    call("tools/test.py", config, checkpoint, *arguments)
    figures = newest_metrics(folder / "eval")
    return dict(
        figures={
            key.split("/")[1]: value
            for key, value in figures.items()
            if key.startswith(("ov/", "seg/"))
        },
        iterations=2 if quick else cfg.train_cfg.max_iters,
        batch_size=cfg.train_dataloader.batch_size,
        train_seconds=None if resume else round(seconds),
        protocol=cfg.test_evaluator.protocol,
        **origin,
    )


def run_folder(config: Path, seed: int, work_dir: Path) -> Path:
    """Where a run works; a changed config has another place."""
    return work_dir / config.stem / f"seed{seed}-{config_hash(config)[:8]}"


def prepare(cfg: Config, work_dir: Path) -> None:
    """Run the config's ``prepare`` commands.

    ``{row}`` in them is the last checkpoint of another row, seed 0.
    """

    class Checkpoints(dict):
        def __missing__(self, row: str) -> str:
            folder = run_folder(page_of(row), 0, work_dir)
            path = folder / "last_checkpoint"
            if not path.exists():
                raise SystemExit(f"run the row '{row}' first: {path} is not there")
            return path.read_text().strip()

    for command in cfg.get("prepare", ()):
        call(*shlex.split(command.format_map(Checkpoints())))


def call(script: str, *args: Any) -> None:
    """Run one of the project's tools; its output is shown when it fails."""
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


def summary(run: dict[str, Any]) -> str:
    """A run in one line."""
    masks = [f"mIoU_{group}" for group in GROUPS]
    keys = ("base_AP50", "combo_AP50", "novel_AP50", "AP", *masks)
    figures = run["figures"]
    return ", ".join(f"{key} {figures[key]:.3f}" for key in keys if key in figures)


def compare_with_plain(cfg: Config, rounds: int = 8) -> dict[str, Any]:
    """Median ratios of step and network times to those of a plain YOLOv8n.

    A step is preprocessing, loss, backward and AdamW, on batches of 16 images of
    the training data. Inference is the network on one image of 640 px with 80
    words, without post-processing (two stages: with the selection of proposals). The
    two models take turns.
    """
    init_default_scope(cfg.default_scope)
    ours, plain = build(cfg), build(Config.fromfile(PLAIN, lazy_import=False))
    # the same images for both; the plain model has 80 classes
    loader = cfg.train_dataloader
    batches = first_batches(loader)
    if isinstance(ours.teacher, CachedTeacher):
        data = DATASETS.build(loader.dataset)
        ours.teacher.admit(data, ours.distill_heads, ours.data_preprocessor)
    closed = copy.deepcopy(batches)
    if "bboxes" not in closed[0]["data_samples"][0].gt_instances:
        boxes = Config.fromfile(page_of("none"), lazy_import=False).train_dataloader
        closed = first_batches(boxes)
    for sample in itertools.chain(*(batch["data_samples"] for batch in closed)):
        sample.gt_instances.labels %= 80
    # training steps, then the network alone
    steps = in_turn(Step(plain, closed), Step(ours, batches), rounds)
    image = torch.rand(1, 3, 640, 640, device=DEVICE)
    words = tuple(batches[0]["data_samples"][0].words)[:80]
    sample = DetDataSample(metainfo=dict(words=words))
    with torch.no_grad():
        nets = in_turn(
            lambda: plain.eval()(image, mode="tensor"),
            lambda: ours.eval()(image, [sample], mode="tensor"),
            rounds,
        )
    return dict(
        step=statistics.median(steps),
        step_range=quartiles(steps),
        inference=statistics.median(nets),
        inference_range=quartiles(nets),
        parameters=sum(p.numel() for n, p in ours.named_parameters() if not_taught(n)),
        parameters_plain=sum(p.numel() for p in plain.parameters()),
        rounds=rounds,
    )


def first_batches(loader: Any) -> list[dict[str, Any]]:
    """Four batches of 16 images of a training."""
    loader.update(batch_size=16, num_workers=0, persistent_workers=False)
    return list(itertools.islice(Runner.build_dataloader(loader), 4))


def not_taught(name: str) -> bool:
    """Whether a parameter is there at test time: distillation heads are not."""
    return not name.startswith("distill.")


def build(cfg: Config) -> Any:
    """A model in training, past the warm-up of its distillation."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train().to(memory_format=torch.channels_last)
    model.init_weights()
    model.to(DEVICE)
    return model


class Step:
    """A training step of a model on the next of its batches."""

    def __init__(self, model: Any, batches: Sequence[dict]) -> None:
        self.model, self.batches = model, itertools.cycle(batches)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def __call__(self) -> None:
        """Preprocess, loss, backward, update."""
        data = self.model.data_preprocessor(next(self.batches), True)
        loss, _ = self.model.parse_losses(self.model(**data, mode="loss"))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def in_turn(first: Any, second: Any, rounds: int, warmup: int = 3) -> list[float]:
    """Ratios second / first of the seconds of two functions called in turn."""
    times = seconds_in_turn([first, second], rounds, warmup)
    return [mine / other for other, mine in zip(*times)]


def quartiles(values: Sequence[float]) -> list[float]:
    """First and third quartile."""
    first, _, third = statistics.quantiles(values, n=4)
    return [first, third]


# ----------------------------------------------------------------------- tables


def write_tables(results: dict[str, Any]) -> None:
    """Renew the tables in the pages that show results."""
    for (page, marks), table in tables(results).items():
        show(ROOT / page, marks, table)


def tables(results: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Page and marks -> the generated table there."""
    one, two = (
        rows_of(results, rows, path)
        for rows, path in ((ROWS, "ablations/"), (TWO_STAGES, ""))
    )
    # the README shows fewer rows and columns, and only what is measured
    short = ["| | base | novel | step |", "|---|---|---|---|"]
    for row, what in SHORT.items():
        runs, times = of_row(results, row)
        if not runs:
            continue
        cells = [spread(runs, f"{g}_AP50") for g in ("base", "novel")]
        cells.append(f"{times['step']:.2f}" if times else NOT)
        short.append(f"| {what} | {' | '.join(cells)} |")
    lines = (one, hard_rows(results), two, mask_rows(results), short)
    return {place: "\n".join(t) + "\n" for place, t in zip(TABLES, lines)}


def rows_of(results: dict[str, Any], rows: Sequence[str], folder: str) -> list[str]:
    """The lines of a table, with links to configs in a folder beside the page."""
    lines = [
        "| row | what | base | combo | novel | step | inference | parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        runs, times = of_row(results, row)
        cells = [spread(runs, f"{g}_AP50", f"{g}_AP") for g in GROUPS]
        cells += [f"{times[k]:.2f}" if times else NOT for k in ("step", "inference")]
        cells.append(f"{times['parameters'] / 1e6:.2f} M" if times else NOT)
        link = f"[`{row}`]({folder}{row}.py)"
        lines.append(f"| {link} | {title(row)} | {' | '.join(cells)} |")
    return lines


def hard_rows(results: dict[str, Any]) -> list[str]:
    """The lines of the table of the hard world."""
    lines = [
        "| row | what | AP50, base | novel | LVIS's AP | APr | APc | APf "
        "| fixed AP | APr |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    figures = ("base_AP50", "novel_AP50", "AP", "APr", "APc", "APf")
    for row in HARD:
        runs, _ = of_row(results, row)
        keys = (*figures, "lvis-fixed_AP", "lvis-fixed_APr")
        cells = [spread(runs, key) for key in keys]
        name = row.removeprefix("hard/")
        lines.append(f"| [`{name}`]({row}.py) | {title(row)} | {' | '.join(cells)} |")
    return lines


def mask_rows(results: dict[str, Any]) -> list[str]:
    """The lines of the table of masks."""
    lines = [
        "| row | what | mIoU, base | combo | novel | harmonic | step | inference "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in MASKS:
        runs, times = of_row(results, row)
        cells = [spread(runs, f"mIoU_{g}") for g in GROUPS]
        cells.append(spread(runs, "hIoU"))
        cells += [f"{times[k]:.2f}" if times else NOT for k in ("step", "inference")]
        cells.append(f"{times['parameters'] / 1e6:.2f} M" if times else NOT)
        link = f"[`{row}`]({row}.py)"
        lines.append(f"| {link} | {title(row)} | {' | '.join(cells)} |")
    return lines


def page_of(row: str) -> Path:
    """The config of a row."""
    folders = ((TWO_STAGES, VILD), (MASKS, SEG), (HARD, LEAVES.parent))
    folder = next((path for rows, path in folders if row in rows), LEAVES)
    return folder / f"{row}.py"


def of_row(results: dict[str, Any], row: str) -> tuple[list[dict], dict | None]:
    """A row's runs and its times, of the config as it is now."""
    path = page_of(row)
    key = {k: v for k, v in run_key(path, 0).items() if k != "seed"}
    runs = [r for r in results["runs"] if key.items() <= r.items()]
    times = [t for t in results["times"] if key.items() <= t.items()]
    return runs, times[0] if times else None


def title(row: str) -> str:
    """First line of the config's docstring."""
    text = page_of(row).read_text()
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0].rstrip(".")


def spread(runs: Sequence[dict], *figures: str) -> str:
    """Mean over seeds, and half the range where there are several seeds."""
    if not runs:
        return NOT
    cells = []
    for figure in figures:
        values = [run["figures"][figure] for run in runs if figure in run["figures"]]
        if not values:  # a group that the world has not
            cells.append("-")
            continue
        half = (max(values) - min(values)) / 2
        more = f" ± {half:.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{more}")
    return " / ".join(cells)


if __name__ == "__main__":
    main()
