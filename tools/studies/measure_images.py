"""The global path of checkpoints beside the teacher: zero-shot, retrieval, time.

    python tools/studies/measure_images.py CHECKPOINT ...
    python tools/studies/measure_images.py --tables   # write the table, measure nothing

On the built-in world's 1,000 validation scenes (data/shapes_1000, drawn when missing):
zero-shot top-1 among 360 words on the objects, cut out one by one; recall at 1 with
3,000 captions; and the time of the image tower over that of a ViT-B/32 (random weights,
224 px), in turn in one process. Checkpoints go through kdeov_mm.KDEOV. The results are
kept in configs/image_text/results.json, and in the table made of it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmengine.fileio import load
from torch import Tensor
from tqdm import tqdm

from kdeov_mm import KDEOV
from kdeov_mm.clip import CLIPImageTeacher, CLIPTextEncoder
from kdeov_mm.datasets import shapes
from kdeov_mm.datasets.shapes_files import write_world
from kdeov_mm.evaluation import retrieval_recall, zero_shot_accuracy
from kdeov_mm.reader import read_image
from pages import ROOT, read_json, seconds_in_turn, show, write_json

FOLDER = ROOT / "configs/image_text"
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "README.md"
WORLD = Path("data/shapes_1000")
TEACHER, PARTS = "teacher", "teacher, told where the objects are"
GROUPS = ("base", "combo", "novel")
NOT = "-"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--scenes", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--world", type=Path, default=WORLD)
    parser.add_argument("--rounds", type=int, default=20, help="timed (default: 20)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    args = parser.parse_args(argv)
    if args.scenes != 1000 and args.results.resolve() == RESULTS:
        parser.error("the table is of 1,000 scenes: name another --results")
    if not args.tables:
        if not args.checkpoints:
            parser.error("name a checkpoint, or --tables")
        measure(args)
    if args.results.resolve() == RESULTS:
        show(PAGE, "results", markdown(load(args.results)))
    return 0


def measure(args: argparse.Namespace) -> None:
    """Measure the teacher and the checkpoints, and keep the results."""
    if not (args.world / "world.json").is_file():
        write_world(args.world, 0, 1, args.scenes, lambda jobs: tqdm(jobs, "drawing"))
    data = Scenes(args.world, args.scenes)
    rows = read_json(args.results, {})
    teacher = CLIPImageTeacher("shapes")
    # the teacher: on whole scenes, and on its objects one by one
    rows[TEACHER] = data.figures(
        teacher(data.pixels), teacher.embed_crops(data.pixels, data.boxes, (1.0,))
    )
    told = rows[TEACHER] | dict(data.retrieval(data.means(teacher)))
    rows[PARTS] = {k: v for k, v in told.items() if "top1" not in k}
    # the students, as users call them
    for checkpoint in args.checkpoints:
        model = KDEOV.from_checkpoint(checkpoint)
        name = checkpoint.resolve().parent.name
        scenes = model.encode_image(data.scenes)
        rows[name] = data.figures(scenes, model.encode_image(data.crops))
        rows[name].update(
            parameters=sum(p.numel() for _, p in image_side(model)),
            checkpoint=checkpoint.name,
            **tower_times(model, args.rounds),
        )
    for name, row in rows.items():
        print(f"{name}: {json.dumps(row, indent=1)}")
    write_json(args.results, rows)


class Scenes:
    """Validation scenes, with their captions and objects.

    Args:
        root: a world of make_shapes.py.
        count: its first scenes.
    """

    def __init__(self, root: Path, count: int) -> None:
        # the first scenes, their pixels (N, 3, H, W), RGB in [0, 1]
        captions = load(root / "annotations/captions_val.json")
        objects = load(root / "annotations/instances_val.json")
        images = captions["images"][:count]
        if len(images) < count:
            raise SystemExit(f"{root} has {len(images)} scenes, asked for {count}")
        place = {image["id"]: i for i, image in enumerate(images)}
        files = [root / "images/val" / image["file_name"] for image in images]
        self.scenes = [read_image(file) for file in files]
        self.pixels = torch.from_numpy(np.stack(self.scenes)).permute(0, 3, 1, 2) / 255
        # captions: whose each is, embedded as they stand
        said = [a for a in captions["annotations"] if a["image_id"] in place]
        self.owner = torch.tensor([place[a["image_id"]] for a in said])
        encoder = CLIPTextEncoder("shapes")
        self.captions = encoder.embed_prompts([a["caption"] for a in said])
        self.text = encoder(shapes.CLASSES)
        # objects: boxes xyxy of each scene, labels of all
        names = {c["id"]: c["name"] for c in objects["categories"]}
        number = {name: i for i, name in enumerate(shapes.CLASSES)}
        boxes: list[list[list[float]]] = [[] for _ in images]
        labels: list[list[int]] = [[] for _ in images]
        for a in objects["annotations"]:
            if (i := place.get(a["image_id"])) is not None:
                x, y, w, h = a["bbox"]
                boxes[i].append([x, y, x + w, y + h])
                labels[i].append(number[names[a["category_id"]]])
        self.boxes = [torch.tensor(b).reshape(-1, 4) for b in boxes]
        self.labels = torch.tensor(sum(labels, []))
        # objects as images of their own
        self.crops = [
            scene[round(y1) : round(y2), round(x1) : round(x2)]
            for scene, its in zip(self.scenes, boxes)
            for x1, y1, x2, y2 in its
        ]

    def figures(self, scenes: Tensor, crops: Tensor) -> dict[str, Any]:
        """Of embeddings of the scenes (N, D) and of all objects (O, D)."""
        return dict(self.retrieval(scenes), **self.zero_shot(crops))

    def retrieval(self, scenes: Tensor) -> dict[str, float]:
        """Recall of the scenes' embeddings (N, D)."""
        return retrieval_recall(scenes, self.captions, self.owner)

    def zero_shot(self, crops: Tensor) -> dict[str, float]:
        """Top-1 among 360 words, of the objects' embeddings (O, D)."""
        ranking = (crops @ self.text.T).topk(5).indices
        rates = zero_shot_accuracy(ranking, self.labels, len(shapes.CLASSES))[1]
        count = torch.bincount(self.labels, minlength=len(shapes.CLASSES))
        number = {name: i for i, name in enumerate(shapes.CLASSES)}
        every = dict(all=shapes.CLASSES, **shapes.WORLD_360.groups)
        figures: dict[str, float] = dict(objects=len(self.labels))
        for group, names in every.items():
            which = torch.tensor([number[n] for n in names])
            right = rates[which].nan_to_num() * count[which]
            figures[f"{group}_top1"] = (right.sum() / count[which].sum()).item()
        return figures

    def means(self, teacher: CLIPImageTeacher) -> Tensor:
        """The mean of what a teacher says of a scene's objects: (N, D)."""
        told = teacher.embed_crops(self.pixels, self.boxes)
        means = [part.mean(0) for part in told.split([len(b) for b in self.boxes])]
        return F.normalize(torch.stack(means), dim=-1)


def image_side(model: KDEOV) -> list[tuple[str, Any]]:
    """Parameters of backbone, neck and global head."""
    parts = ("backbone", "neck", "global_head")
    named = model.model.named_parameters()
    return [(n, p) for n, p in named if n.split(".")[0] in parts]


@torch.no_grad()
def tower_times(model: KDEOV, rounds: int) -> dict[str, float]:
    """Median times of a ViT-B/32 at 224 px over those of the student's image tower.

    At the student's own input size and at 224 px, one image and sixteen; the student's
    convolutions and norms are fused.
    """
    student = fuse_conv_bn(model.model)
    vit = open_clip.create_model("ViT-B-32").visual.eval()

    def tower(images: Tensor) -> Tensor:
        return student.global_head.embed(
            student.extract_feat(images), torch.ones(len(images), 2)
        )

    figures = {}
    for batch in (1, 16):
        runs: dict[str, Callable[[], Tensor]] = {}
        for side in (64, model.size, 224):
            image = torch.rand(batch, 3, side, side)
            image = image.contiguous(memory_format=torch.channels_last)
            runs[f"{side}"] = partial(tower, image)
        runs["vit"] = partial(vit, torch.rand(batch, 3, 224, 224))
        # the first two turns warm up
        times = seconds_in_turn(list(runs.values()), rounds, 2)
        middle = {key: statistics.median(t) for key, t in zip(runs, times)}
        for key in middle:
            if key != "vit":
                figures[f"faster_{key}px_batch{batch}"] = middle["vit"] / middle[key]
        figures[f"vit_ms_batch{batch}"] = 1e3 * middle["vit"]
    return figures


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of the page."""
    lines = [
        "| | top-1, base | combo | novel | image to text R@1 / 5 / 10 | text to image "
        "R@1 / 5 / 10 | parameters | times as fast as ViT-B/32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        top1 = [row.get(f"{group}_top1") for group in GROUPS]
        cells = [NOT if value is None else f"{value:.3f}" for value in top1]
        for way in ("i2t", "t2i"):
            cells.append(" / ".join(f"{row[f'{way}_R@{k}']:.3f}" for k in (1, 5, 10)))
        size = row.get("parameters")
        cells.append(f"{size / 1e6:.2f} M" if size else NOT)
        fast = [v for k, v in row.items() if k.startswith("faster_")]
        cells.append(f"{min(fast):.1f} to {max(fast):.1f}" if fast else NOT)
        link = name if name in (TEACHER, PARTS) else f"`{name}`"
        lines.append(f"| {link} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
