"""The whole story in one go: world, training, evaluation, drawings, report.

    python tools/demo.py

Trains a student on boxes of 200 base classes of the built-in world and shows
that it also finds the 160 classes which had no box in training.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData

from kdeov_mm.datasets import shapes
from kdeov_mm.evaluation import newest_metrics
from kdeov_mm.inference.drawing import draw
from kdeov_mm.inference.inferencer import KDEOVInferencer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/kdeov/kdeov_n_shapes.py"
DATA = Path("data/shapes")
WORK = Path("work_dirs/demo")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=int, default=6, help="validation images to draw"
    )
    args = parser.parse_args()
    if args.pictures < 1:
        parser.error("--pictures needs at least one")
    # configs name their data relative to the project
    os.chdir(ROOT)
    # each step is a tool that users run by hand, too
    say(1, "Writing the built-in world to data/shapes", "about 1 minute, once")
    run("tools/make_shapes.py", "--root", DATA)
    say(
        2,
        f"Training the student: {CONFIG}",
        '7 to 14 minutes on 2 cores; "eta" is the time left',
    )
    train_seconds = run("tools/train.py", CONFIG, "--work-dir", WORK)
    checkpoint = Path((WORK / "last_checkpoint").read_text().strip())
    say(
        3,
        "Evaluating on 500 unseen images, all 360 words asked at once",
        "about half a minute",
    )
    eval_seconds = run("tools/test.py", CONFIG, checkpoint, "--work-dir", WORK / "eval")
    # its folder has an evaluation for each run of the demo
    figures = newest_metrics(WORK / "eval")
    say(4, "Drawing ground truth and predictions", "a few seconds")
    drawings = draw_examples(checkpoint, args.pictures)
    # what `make demo` shows, and keeps
    report: dict[str, Any] = dict(
        protocol=protocol(),
        base_ap50=figures["ov/base_AP50"],
        novel_ap50=figures["ov/novel_AP50"],
        combo_ap50=figures["ov/combo_AP50"],
        ap=figures["ov/AP"],
        train_seconds=round(train_seconds, 1),
        eval_seconds=round(eval_seconds, 1),
        config=CONFIG,
        checkpoint=relative(checkpoint),
        pictures=drawings,
    )
    (WORK / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


def say(step: int, what: str, how_long: str) -> None:
    """Announce a step."""
    print(f"\n[{step}/4] {what} ({how_long})", flush=True)


def run(script: str, *args: Any) -> float:
    """Run one of the project's tools; return the seconds it took."""
    started = time.time()
    done = subprocess.run([sys.executable, script, *map(str, args)])
    if done.returncode:
        raise SystemExit(
            f"{script} failed with exit code {done.returncode}; its message is above."
        )
    return time.time() - started


def protocol() -> str:
    """The evaluator's protocol name, from the config."""
    from mmengine.config import Config

    return Config.fromfile(CONFIG, lazy_import=False).test_evaluator.protocol


def relative(path: Path) -> str:
    """A path below the project, as users type it."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def draw_examples(checkpoint: Path, count: int) -> list[str]:
    """Drawings of the validation images with the most novel objects."""
    truth = json.loads((DATA / "annotations/instances_val.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    objects: dict[int, list[tuple[str, list[float]]]] = {}
    for ann in truth["annotations"]:
        objects.setdefault(ann["image_id"], []).append(
            (names[ann["category_id"]], ann["bbox"])
        )
    # the images with the most novel objects; of equally many, the first
    novel = set(shapes.NOVEL_CLASSES)
    images = sorted(
        truth["images"],
        key=lambda i: (-sum(n in novel for n, _ in objects.get(i["id"], ())), i["id"]),
    )[:count]
    paths = [DATA / "images/val" / Path(i["file_name"]).name for i in images]
    # all words are asked, and those without boxes in training are marked
    inferencer = KDEOVInferencer(CONFIG, checkpoint, "cpu")
    drawings = []
    for image, found in zip(images, inferencer.stream(paths, shapes.CLASSES)):
        if found.sample is None or found.image is None or found.path is None:
            raise SystemExit(found.error)
        # ground truth and predictions side by side
        found.sample.gt_instances = to_instances(objects[image["id"]])
        drawing = draw(
            found.image,
            found.sample,
            shapes.CLASSES,
            shapes.PALETTE,
            marked=novel,
        )
        target = WORK / f"val_{found.path.stem}.png"
        cv2.imwrite(str(target), np.ascontiguousarray(drawing[..., ::-1]))
        drawings.append(str(target))
    return drawings


def to_instances(objects: Sequence[tuple[str, list[float]]]) -> InstanceData:
    """Names and xywh boxes -> mm instances with xyxy boxes."""
    boxes = torch.tensor([box for _, box in objects]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [shapes.CLASSES.index(name) for name, _ in objects]
    return InstanceData(bboxes=boxes, labels=torch.tensor(labels))


def print_table(report: dict[str, Any]) -> None:
    """The result in a few lines."""
    # the three groups, from seen to unseen
    rows = [
        ("base: 200 classes with boxes in training", "base_ap50"),
        ("combo: 40 new combinations of seen concepts", "combo_ap50"),
        ("novel: 120 classes with a colour or shape never boxed", "novel_ap50"),
    ]
    print(f"\n{report['protocol']}\n{'':56}AP50")
    for label, key in rows:
        print(f"{label:<56}{report[key]:.3f}")
    print(
        f"\nReport:   {WORK / 'report.json'}\nPictures: "
        f"{report['pictures'][0]} and {len(report['pictures']) - 1} more "
        "(left: truth, right: student)"
    )


if __name__ == "__main__":
    main()
