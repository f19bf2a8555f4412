"""Train the tiny CLIPs that teach in the built-in worlds.

    python tools/studies/train_teacher.py
    python tools/studies/train_teacher.py --world 1203 --scenes 8000 --lr 1e-3
    python tools/studies/train_teacher.py --world hard --scenes 2500 --lr 1e-3

open_clip's model, tokenizer and contrastive loss on crops and captions of all
classes; those of the larger worlds start from the smallest's weights. The hard world's
sees whole scenes as well, and one of some captions is of another object of the scene.
The scenes are not those of the world. The result replaces the one that ships with the
package, so the text caches of students start anew. An interrupted training goes on
where it was last saved.
"""

import argparse
import io
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import box_iou, roi_align
from tqdm import tqdm

from kdeov_mm.clip import TEACHERS, CLIPImageTeacher, CLIPSource, CLIPTextEncoder
from kdeov_mm.clip.text import DEFAULT_TEMPLATES
from kdeov_mm.datasets import shapes
from kdeov_mm.datasets.shapes_files import jpeg
from kdeov_mm.datasets.worlds import Scene, World
from kdeov_mm.evaluation.reliability import calibration
from kdeov_mm.files import write_whole

SEED_OFFSET = 7000  # scenes of the teacher: seeds that no world uses
SHIPPED = {"360": "shapes", "1203": "shapes-1203", "hard": "shapes-hard"}
PARTS_AGAIN = 3  # further crops of each part in a batch: many boxes, few names
SIDES = (16, 32, 64, 128)  # pixels, between sizes that are reported apart
SAVED, SAVED_EVERY = "training.pt", 200  # an unfinished training; steps
BACKGROUND = "background"
PATCH, CONTEXT = 80, 2.0


class Crops(NamedTuple):
    """Objects with their surroundings, cut out once.

    Attributes:
        patches: (n, 3, PATCH, PATCH) uint8 RGB, ``CONTEXT`` times the box.
        labels: (n,) class indices; the one after the last is background.
        scenes: (n,) the scene that each is of.
        wholes: (scenes, 3, PATCH, PATCH) uint8 RGB, all of each scene.
    """

    patches: Tensor
    labels: Tensor
    scenes: Tensor
    wholes: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--world", choices=list(SHIPPED), default="360")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument(
        "--batch", type=int, default=256, help="different names in a batch"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--wholes", type=int, default=32, help="whole scenes in a batch, hard world"
    )
    parser.add_argument(
        "--wrong", type=float, default=0.15, help="share of wrong captions, hard world"
    )
    parser.add_argument(
        "--start", help="CLIP to start from (default: that of the first world, if any)"
    )
    parser.add_argument("--out", type=Path, help="folder (default: the package's)")
    args = parser.parse_args()
    world = shapes.WORLDS[args.world]
    args.out = args.out or TEACHERS[SHIPPED[args.world]]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    crops = collect(args.seed + SEED_OFFSET, args.scenes, rng, world)
    if args.world == "360" and args.start is None:
        model = new_model()
    else:
        model = CLIPSource(args.start or "shapes").load()
        model.train().requires_grad_(True)
    train(model, crops, args, rng, world)
    forget_unheard_tokens(model, world)
    config = TEACHERS["shapes"] / "open_clip_config.json"
    if args.out.resolve() != config.parent.resolve():
        shutil.copy(config, args.out)
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        str(args.out / "open_clip_model.safetensors"),
    )
    (args.out / SAVED).unlink(missing_ok=True)
    count = 400 if args.world == "hard" else 1200
    report = evaluate(args.out, args.seed + SEED_OFFSET + 1, count, world)
    print(json.dumps(report, indent=2), table(report), sep="\n\n")


def new_model() -> Any:
    """An untrained CLIP of the shipped config."""
    config = json.loads((TEACHERS["shapes"] / "open_clip_config.json").read_text())
    return open_clip.CLIP(**config["model_cfg"])


def forget_unheard_tokens(model: Any, world: World) -> None:
    """Set the vectors of tokens that no caption has to 0: the file packs better.

    They were random, and said as little.
    """
    synonyms = [n for other in world.synonyms.values() for n in other]
    names = [*world.classes, *synonyms]
    sentences = [t.format(n) for n in names for t in DEFAULT_TEMPLATES]
    if world.describe is not None:
        rng = np.random.default_rng(0)  # enough for all of its frames
        sentences += [c for _ in range(100) for c in world.describe(rng, [0, 1, 2])]
    heard = CLIPSource("shapes").tokenizer()([*sentences, BACKGROUND]).unique()
    weight = model.token_embedding.weight.data
    keep = torch.zeros(len(weight), 1)
    keep[heard] = 1
    weight.mul_(keep)


def collect(
    seed: int,
    count: int,
    rng: np.random.Generator,
    world: World = shapes.WORLD_360,
) -> Crops:
    """Draw scenes; cut out their objects and one background box each."""
    patches, labels, scenes, wholes = [], [], [], []
    for i in tqdm(range(count), desc="drawing scenes", unit="scene"):
        scene = shapes.draw_scene(shapes.scene_rng(seed, 0, i), world)
        empty = background_box(scene.boxes, rng, world.size)
        image = pixels_of(scene)[None].float()
        boxes = torch.from_numpy(np.concatenate([scene.boxes, empty]))
        patches.append(
            roi_align(image, [grow(boxes, CONTEXT)], PATCH, aligned=True).round().byte()
        )
        own = [*scene.labels.tolist(), *[len(world.classes)] * len(empty)]
        labels += own
        scenes += [i] * len(own)
        wholes.append(F.interpolate(image, (PATCH, PATCH), mode="area").byte())
    ids = torch.tensor(labels), torch.tensor(scenes)
    return Crops(torch.cat(patches), *ids, torch.cat(wholes))


def pixels_of(scene: Scene) -> Tensor:
    """The image (3, H, W) uint8 RGB; that of its file, where that loses something."""
    image = scene.image
    if scene.quality < 95:
        file = np.frombuffer(jpeg(scene), np.uint8)
        image = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1].copy()
    return torch.from_numpy(image).permute(2, 0, 1)


def grow(boxes: Tensor, scale: float | Tensor) -> Tensor:
    """Boxes (n, 4) xyxy scaled about their centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * scale / 2
    return torch.cat([centre - half, centre + half], 1)


def background_box(
    boxes: np.ndarray, rng: np.random.Generator, size: int = shapes.SIZE
) -> np.ndarray:
    """One random box (1, 4) that hits no object, or none (0, 4)."""
    for _ in range(10):
        side = rng.uniform(16, 60)
        x, y = rng.uniform(0, size - side, 2)
        box = np.array([[x, y, x + side, y + side]], np.float32)
        if not box_iou(torch.from_numpy(box), torch.from_numpy(boxes)).any():
            return box
    return np.zeros((0, 4), np.float32)


def crop(
    patches: Tensor,
    size: int,
    shift: float = 0.12,
    scales: tuple[float, float] = (0.9, 1.55),
) -> Tensor:
    """Patches (n, 3, PATCH, PATCH) -> jittered crops (n, 3, size, size).

    RGB in [0, 1]; the box is moved by up to a share of its side, scaled, and its sides
    by up to 7 per cent more or less.
    """
    count, box = len(patches), PATCH / CONTEXT
    centre = PATCH / 2 + box * torch.empty(count, 2).uniform_(-shift, shift)
    scale = torch.empty(count, 1).uniform_(*scales)
    half = box / 2 * scale * torch.empty(count, 2).uniform_(0.93, 1.07)
    rois = torch.cat([torch.arange(count)[:, None], centre - half, centre + half], 1)
    return roi_align(patches.float() / 255, rois, size, aligned=True)


def caption(name: str, rng: np.random.Generator) -> str:
    """A template, and now and then a name without its fill or colour."""
    words = name.split()
    if len(words) == 3 and rng.random() < 0.1:
        words.pop(rng.integers(2))
    return rng.choice(DEFAULT_TEMPLATES).format(" ".join(words))


class Batches:
    """Crops of different names, and for the hard world whole scenes, with captions."""

    def __init__(
        self,
        crops: Crops,
        args: argparse.Namespace,
        rng: np.random.Generator,
        world: World,
    ) -> None:
        self.crops, self.args, self.rng, self.world = crops, args, rng, world
        self.names = [*world.classes, BACKGROUND]
        labels = range(len(self.names))
        members = [torch.nonzero(crops.labels == i)[:, 0].numpy() for i in labels]
        # kinds have no crops: captions say them
        self.members = {i: own for i, own in enumerate(members) if len(own)}
        alone = [i for i in self.members if " " not in self.names[i]]
        self.parts = [] if world.describe is None else alone

    def __call__(self, size: int) -> tuple[Tensor, list[str]]:
        """(n, 3, size, size) RGB in [0, 1] and n captions."""
        again = np.repeat(np.array(self.parts, int), PARTS_AGAIN)
        number = self.args.batch - len(again)
        chosen = self.rng.choice([*self.members], number, replace=False)
        chosen = np.concatenate([chosen, again])
        which = torch.tensor([self.rng.choice(self.members[i]) for i in chosen])
        images = crop(self.crops.patches[which], size)
        if self.world.describe is None:
            return images, [caption(self.names[i], self.rng) for i in chosen]
        captions = [self.noisy(int(i)) for i in which]
        # scenes with a caption of some of their objects
        shown = self.rng.choice(len(self.crops.wholes), self.args.wholes, False)
        wholes = self.crops.wholes[torch.from_numpy(shown)].float() / 255
        wholes = F.interpolate(wholes, (size, size), mode="area")
        for scene in shown:
            labels = self.crops.labels[self.crops.scenes == int(scene)].tolist()
            captions.append(self.said([i for i in labels if i < len(self.names) - 1]))
        return torch.cat([images, wholes]), captions

    def noisy(self, patch: int) -> str:
        """A caption of a crop, now and then of another object of its scene."""
        label = int(self.crops.labels[patch])
        if self.rng.random() < self.args.wrong:
            others = self.crops.labels[self.crops.scenes == self.crops.scenes[patch]]
            label = int(self.rng.choice(others.numpy()))
        background = label == len(self.names) - 1
        return BACKGROUND if background else self.said([label])

    def said(self, labels: list[int]) -> str:
        """A caption of some labels, as the world's people say it."""
        assert self.world.describe is not None
        return self.world.describe(self.rng, labels)[0]


def optimizer_of(model: Any, args: argparse.Namespace) -> tuple[Any, Any]:
    """AdamW with weight decay for matrices alone, as CLIP, and its schedule."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            dict(params=decayed, weight_decay=0.05),
            dict(params=others, weight_decay=0.0),
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * step / args.steps)
        ),
    )
    return optimizer, schedule


def train(
    model: Any,
    crops: Crops,
    args: argparse.Namespace,
    rng: np.random.Generator,
    world: World,
) -> None:
    """CLIP's contrastive loss; each batch holds crops of different names only."""
    batches = Batches(crops, args, rng, world)
    tokenize = CLIPSource("shapes").tokenizer()
    loss_of = open_clip.ClipLoss()
    optimizer, schedule = optimizer_of(model, args)
    # an interrupted training goes on, with the random numbers that it would have had
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    first, saved = 0, args.out / SAVED
    if saved.exists():
        first = load(saved, parts, rng)
    started, losses = time.time(), []
    for step in range(first, args.steps):
        images, captions = batches(model.visual.image_size[0])
        noise = torch.randn(len(images), 3, 1, 1) * 0.02
        features = model((images + noise - 0.5) / 0.25, tokenize(captions))
        loss = loss_of(*features[:3])
        # a step, and CLIP's limit of the temperature
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
        if (step + 1) % SAVED_EVERY == 0:
            spent = (time.time() - started) / (step + 1 - first)
            mean = np.mean(losses[-SAVED_EVERY:])
            print(
                f"step {step + 1}/{args.steps}  loss {mean:.4f}  "
                f"{spent:.2f} s each, {spent * (args.steps - step - 1):.0f} s left",
                flush=True,
            )
            save(saved, step + 1, parts, rng)


def save(
    path: Path, step: int, parts: dict[str, Any], rng: np.random.Generator
) -> None:
    """Keep an unfinished training, all of it or none."""
    states = {name: part.state_dict() for name, part in parts.items()}
    states.update(step=step, numpy=rng.bit_generator.state, torch=torch.get_rng_state())
    buffer = io.BytesIO()
    torch.save(states, buffer)
    write_whole(path, buffer.getvalue())


def load(path: Path, parts: dict[str, Any], rng: np.random.Generator) -> int:
    """Take up an unfinished training; the step that is next."""
    states = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(states[name])
    rng.bit_generator.state = states["numpy"]
    torch.set_rng_state(states["torch"])
    return states["step"]


VIEWS = {"top1": (1.0, 1.5), "top1_1x": (1.0,), "top1_1.5x": (1.5,)}


class Answers(NamedTuple):
    """What a teacher says of true boxes.

    Attributes:
        labels: (n,) classes.
        sides: (n,) longer side of each box, pixels.
        similar: view -> (n, K) cosines to all words.
        scale: the teacher's factor of the cosines in its softmax.
    """

    labels: Tensor
    sides: Tensor
    similar: dict[str, Tensor]
    scale: float


@torch.no_grad()
def ask(folder: Path, seed: int, count: int, world: World) -> Answers:
    """Embed the true boxes of fresh scenes, and the scenes, as students do."""
    source = f"local-dir:{folder}"
    teacher = CLIPImageTeacher(source)
    text = CLIPTextEncoder(source)(world.classes)
    embeds: dict[str, list[Tensor]] = {view: [] for view in (*VIEWS, "top1_scene")}
    labels, sides = [], []
    for i in tqdm(range(count), desc="asking the teacher", unit="scene"):
        scene = shapes.draw_scene(shapes.scene_rng(seed, 0, i), world)
        image = pixels_of(scene)[None].float() / 255
        boxes = torch.from_numpy(scene.boxes)
        for view, scales in VIEWS.items():
            embeds[view].append(teacher.embed_crops(image, [boxes], scales))
        embeds["top1_scene"].append(teacher(image).expand(len(boxes), -1))
        labels.append(torch.from_numpy(scene.labels))
        sides.append((boxes[:, 2:] - boxes[:, :2]).amax(1))
    similar = {view: torch.cat(parts) @ text.T for view, parts in embeds.items()}
    clip: Any = CLIPSource(source).load()
    scale = float(clip.logit_scale.exp())
    return Answers(torch.cat(labels), torch.cat(sides), similar, scale)


def evaluate(
    folder: Path,
    seed: int,
    count: int = 1200,
    world: World = shapes.WORLD_360,
) -> dict[str, float]:
    """Zero-shot top-1 over all classes on the true boxes of fresh scenes.

    For the two scales that students use and for each, for the whole scene, for groups
    of classes, and all of it for boxes by their longer side, with what the softmax of
    the two scales is worth: its mean, and the error of its calibration (ECE).
    """
    answers = ask(folder, seed, count, world)
    label = answers.labels
    report = dict(objects=len(label), **figures(answers, label >= 0))
    right = answers.similar["top1"].argmax(1) == label
    for group, names in world.groups.items():
        member = torch.tensor([n in {*names} for n in world.classes])[label]
        report[f"top1_{group}"] = right[member].float().mean().item()
    # sizes: of what there is
    limits = torch.tensor(SIDES, dtype=answers.sides.dtype)
    bins = torch.bucketize(answers.sides, limits, right=True)
    for i, (low, high) in enumerate(zip((0, *SIDES), (*SIDES, world.size))):
        if (bins == i).any():
            own = dict(objects=int((bins == i).sum()), **figures(answers, bins == i))
            report.update({f"{k}_{low}_to_{high}px": v for k, v in own.items()})
    # how far the right word is from the next one
    similar = answers.similar["top1"]
    others = similar.scatter(1, label[:, None], -1)
    report["cosine_own"] = similar.gather(1, label[:, None]).mean().item()
    report["cosine_runner_up"] = others.amax(1).mean().item()
    return report


def figures(answers: Answers, which: Tensor) -> dict[str, float]:
    """Accuracy of each view and calibration, on some of the boxes."""
    label = answers.labels[which]
    right = {v: s[which].argmax(1) == label for v, s in answers.similar.items()}
    logits = answers.similar["top1"][which] * answers.scale
    confidence = logits.softmax(1).amax(1)
    return dict(
        {view: share.float().mean().item() for view, share in right.items()},
        confidence=confidence.mean().item(),
        ece=calibration(confidence.numpy(), right["top1"].numpy())["ece"],
    )


def table(report: dict[str, float]) -> str:
    """Accuracy by size and scale, and calibration, beside each other."""
    columns = ("objects", *VIEWS, "top1_scene", "confidence", "ece")
    sizes = [k.removeprefix("ece") for k in report if k.startswith("ece")]
    head = (
        "longer side",
        "boxes",
        "1x and 1.5x",
        "1x",
        "1.5x",
        "scene",
        "mean softmax",
    )
    rows = [(*head, "ECE"), ("---",) * (len(head) + 1)]
    for size in sizes:
        name = size.strip("_").replace("_", " ") or "all"
        values = [report[f"{c}{size}"] for c in columns]
        rows.append(
            (name, *[f"{v:,}" if isinstance(v, int) else f"{v:.3f}" for v in values])
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
