"""Train the tiny CLIPs that teach in the built-in worlds.

    python tools/studies/train_teacher.py
    python tools/studies/train_teacher.py --world 1203 --scenes 8000 --lr 1e-3

open_clip's model, tokenizer and contrastive loss on crops and captions of all
classes; the larger world's starts from the smaller's weights. The scenes are not
those of the world. The result replaces the one that ships with the package, so the
text caches of students start anew.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import box_iou, roi_align
from tqdm import tqdm

from kdeov_mm.clip import TEACHERS, CLIPImageTeacher, CLIPSource, CLIPTextEncoder
from kdeov_mm.clip.text import DEFAULT_TEMPLATES
from kdeov_mm.datasets import shapes

SEED_OFFSET = 7000  # scenes of the teacher: seeds that no world uses
BACKGROUND = "background"
PATCH, CONTEXT = 80, 2.0


class Crops(NamedTuple):
    """Objects with their surroundings, cut out once.

    Attributes:
        patches: (n, 3, PATCH, PATCH) uint8 RGB, ``CONTEXT`` times the box.
        labels: (n,) class indices; the one after the last is background.
    """

    patches: Tensor
    labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--world", choices=list(shapes.WORLDS), default="360")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument(
        "--batch", type=int, default=256, help="different names in a batch"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="folder (default: the package's)")
    args = parser.parse_args()
    world = shapes.WORLDS[args.world]
    shipped = TEACHERS["shapes" if args.world == "360" else "shapes-1203"]
    args.out = args.out or shipped
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    crops = collect(args.seed + SEED_OFFSET, args.scenes, rng, world)
    if args.world == "360":
        model = new_model()
    else:
        model = CLIPSource("shapes").load().train().requires_grad_(True)
    train(model, crops, args, rng, world)
    forget_unheard_tokens(model, world)
    args.out.mkdir(parents=True, exist_ok=True)
    config = TEACHERS["shapes"] / "open_clip_config.json"
    if args.out.resolve() != config.parent.resolve():
        shutil.copy(config, args.out)
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        str(args.out / "open_clip_model.safetensors"),
    )
    report = evaluate(args.out, args.seed + SEED_OFFSET + 1, world=world)
    print(json.dumps(report, indent=2))


def new_model() -> Any:
    """An untrained CLIP of the shipped config."""
    config = json.loads((TEACHERS["shapes"] / "open_clip_config.json").read_text())
    return open_clip.CLIP(**config["model_cfg"])


def forget_unheard_tokens(model: Any, world: shapes.World) -> None:
    """Set the vectors of tokens that no caption has to 0: the file packs better.

    They were random, and said as little.
    """
    sentences = [t.format(n) for n in world.classes for t in DEFAULT_TEMPLATES]
    heard = CLIPSource("shapes").tokenizer()([*sentences, BACKGROUND]).unique()
    weight = model.token_embedding.weight.data
    keep = torch.zeros(len(weight), 1)
    keep[heard] = 1
    weight.mul_(keep)


def collect(
    seed: int,
    count: int,
    rng: np.random.Generator,
    world: shapes.World = shapes.WORLD_360,
) -> Crops:
    """Draw scenes; cut out their objects and one background box each."""
    patches, labels = [], []
    for i in tqdm(range(count), desc="drawing scenes", unit="scene"):
        scene = shapes.draw_scene(shapes.scene_rng(seed, 0, i), world)
        empty = background_box(scene.boxes, rng)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
        boxes = torch.from_numpy(np.concatenate([scene.boxes, empty]))
        patches.append(
            roi_align(image, [grow(boxes, CONTEXT)], PATCH, aligned=True).round().byte()
        )
        labels += [*scene.labels.tolist(), *[len(world.classes)] * len(empty)]
    return Crops(torch.cat(patches), torch.tensor(labels))


def grow(boxes: Tensor, scale: float | Tensor) -> Tensor:
    """Boxes (n, 4) xyxy scaled about their centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * scale / 2
    return torch.cat([centre - half, centre + half], 1)


def background_box(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random box (1, 4) that hits no object, or none (0, 4)."""
    for _ in range(10):
        side = rng.uniform(16, 60)
        x, y = rng.uniform(0, shapes.SIZE - side, 2)
        box = np.array([[x, y, x + side, y + side]], np.float32)
        if not box_iou(torch.from_numpy(box), torch.from_numpy(boxes)).any():
            return box
    return np.zeros((0, 4), np.float32)


def crop(patches: Tensor, size: int) -> Tensor:
    """Patches (n, 3, PATCH, PATCH) -> jittered crops (n, 3, size, size).

    RGB in [0, 1]; the box is moved by up to 12 % and scaled by 0.85 to 1.65.
    """
    count, box = len(patches), PATCH / CONTEXT
    centre = PATCH / 2 + box * torch.empty(count, 2).uniform_(-0.12, 0.12)
    scale = torch.empty(count, 1).uniform_(0.9, 1.55)
    half = box / 2 * scale * torch.empty(count, 2).uniform_(0.93, 1.07)
    rois = torch.cat([torch.arange(count)[:, None], centre - half, centre + half], 1)
    return roi_align(patches.float() / 255, rois, size, aligned=True)


def caption(name: str, rng: np.random.Generator) -> str:
    """A template, and now and then a name without its fill or colour."""
    words = name.split()
    if len(words) == 3 and rng.random() < 0.1:
        words.pop(rng.integers(2))
    return rng.choice(DEFAULT_TEMPLATES).format(" ".join(words))


def train(
    model: Any,
    crops: Crops,
    args: argparse.Namespace,
    rng: np.random.Generator,
    world: shapes.World,
) -> None:
    """CLIP's contrastive loss; each batch holds different names only."""
    names = [*world.classes, BACKGROUND]
    members = [
        torch.nonzero(crops.labels == i)[:, 0].numpy() for i in range(len(names))
    ]
    tokenize = CLIPSource("shapes").tokenizer()
    loss_of = open_clip.ClipLoss()
    size = model.visual.image_size[0]
    # weight decay for matrices alone, as CLIP
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
    started, losses = time.time(), []
    for step in range(args.steps):
        # a batch: one crop of each of the names, and a caption
        chosen = rng.choice(len(names), args.batch, replace=False)
        which = torch.tensor([rng.choice(members[i]) for i in chosen])
        images = crop(crops.patches[which], size)
        noise = torch.randn(len(images), 3, 1, 1) * 0.02
        tokens = tokenize([caption(names[i], rng) for i in chosen])
        features = model((images + noise - 0.5) / 0.25, tokens)
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
        if (step + 1) % 200 == 0:
            spent = time.time() - started
            print(
                f"step {step + 1}/{args.steps}  loss "
                f"{np.mean(losses[-200:]):.4f}  {spent:.0f} s, "
                f"{spent / (step + 1) * (args.steps - step - 1):.0f} s left",
                flush=True,
            )


@torch.no_grad()
def evaluate(
    folder: Path,
    seed: int,
    count: int = 1200,
    world: shapes.World = shapes.WORLD_360,
) -> dict[str, float]:
    """Zero-shot top-1 over all classes on crops of fresh scenes."""
    source = f"local-dir:{folder}"
    teacher = CLIPImageTeacher(source)
    text = CLIPTextEncoder(source)(world.classes)
    crops = collect(seed, count, np.random.default_rng(seed), world)
    objects = torch.nonzero(crops.labels < len(world.classes))[:, 0]
    # the objects of fresh scenes, at the two scales that students use and at one
    embeds = {}
    for key, scales in dict(top1=(1.0, 1.5), top1_1x=(1.0,)).items():
        parts = []
        for which in objects.split(256):
            middle = torch.tensor([[0.0, 0.0, PATCH, PATCH]])
            boxes = [grow(middle, 1 / CONTEXT)] * len(which)
            parts.append(
                teacher.embed_crops(crops.patches[which].float() / 255, boxes, scales)
            )
        embeds[key] = torch.cat(parts)
    labels = crops.labels[objects]
    right = {k: (e @ text.T).argmax(1) == labels for k, e in embeds.items()}
    report = {k: r.float().mean().item() for k, r in right.items()}
    for group, names in world.groups.items():
        members = set(names)
        member = torch.tensor([n in members for n in world.classes])[labels]
        report[f"top1_{group}"] = right["top1"][member].float().mean().item()
    # how far the right word is from the next one
    similar = embeds["top1"] @ text.T
    own = similar.gather(1, labels[:, None])[:, 0]
    similar.scatter_(1, labels[:, None], -1)
    return dict(
        objects=len(labels),
        **report,
        cosine_own=own.mean().item(),
        cosine_runner_up=similar.amax(1).mean().item(),
    )


if __name__ == "__main__":
    main()
