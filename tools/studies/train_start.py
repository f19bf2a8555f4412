"""Train the backbone that students of the hard world start from: crops of base classes.

    python tools/studies/train_start.py

Published students start from weights of ImageNet. Nothing is downloaded here, so this
is of the hard world: YOLOv8-n learns to name objects of base classes, cut out of scenes
that are not the world's, among the base words. No teacher, no novel label. At three
depths, each by a layer that is dropped at the end. The result replaces the file that
ships with the configs.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torchvision.ops import roi_align
from tqdm import tqdm

from kdeov_mm.datasets import shapes
from kdeov_mm.datasets.shapes_hard import WORLD_HARD
from kdeov_mm.models import TextClassifier, TextEmbeds
from train_teacher import CONTEXT, PATCH, crop, grow, pixels_of

CONFIG = "configs/kdeov/kdeov_n_shapes_hard.py"
OUT = Path("configs/kdeov/hard/start.pth")
SEED = 9000  # scenes that neither the world nor its teacher has
SIDES = (32, 48, 64, 96)  # pixels of the crops, the same for all of a batch
LEAST = 6  # pixels of the shorter side of a box


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.manual_seed(0)
    words = WORLD_HARD.groups["base"]
    patches, labels = collect(args.scenes, words)
    # the student's own backbone
    cfg = Config.fromfile(CONFIG)
    init_default_scope("mmdet")
    backbone = MODELS.build({**cfg.model.backbone, "init_cfg": None})
    backbone.init_weights()
    namer = Namer(backbone, MODELS.build(cfg.model.text_encoder)(words))
    train(namer, patches, labels, args)
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    # the leak report reads the classes
    began = "pretraining = []  # it began with random weights"
    meta = dict(cfg=began, dataset_meta=dict(classes=[*words]))
    torch.save(dict(state_dict=halves, meta=meta), args.out)


def collect(count: int, words: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Objects of base classes in square surroundings of twice their longer side.

    Returns:
        (n, 3, PATCH, PATCH) uint8 RGB, and (n,) indices of ``words``.
    """
    index = {name: i for i, name in enumerate(words)}
    patches, labels = [], []
    for i in tqdm(range(count), desc="drawing scenes", unit="scene"):
        scene = shapes.draw_scene(shapes.scene_rng(SEED, 0, i), WORLD_HARD)
        names = [WORLD_HARD.classes[label] for label in scene.labels]
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        keep = [n in index and s.min() >= LEAST for n, s in zip(names, sides)]
        boxes = torch.from_numpy(scene.boxes[np.array(keep)])
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
        square = grow(torch.cat([centre - half, centre + half], 1), CONTEXT)
        image = pixels_of(scene)[None].float()
        patches.append(roi_align(image, [square], PATCH, aligned=True).round().byte())
        labels += [index[n] for n, k in zip(names, keep) if k]
    return torch.cat(patches), torch.tensor(labels)


class Namer(nn.Module):
    """A backbone, and at each of its depths a guess at the word.

    Args:
        backbone: gives three maps.
        vectors: (K, D) of the words.
    """

    def __init__(self, backbone: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = TextEmbeds(vectors)
        with torch.no_grad():
            widths = [m.shape[1] for m in backbone(torch.zeros(2, 3, 64, 64))]
        dims = vectors.shape[1]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(w, 256), nn.SiLU(), nn.Linear(256, dims))
            for w in widths
        )
        self.classifier = TextClassifier(dims, centred=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(n, 3, H, W) -> logits (n, K) of each depth."""
        means = [m.mean((2, 3)) for m in self.backbone(images)]
        embeds = [F.normalize(layer(m), dim=1) for layer, m in zip(self.layers, means)]
        return [self.classifier(e, self.text) for e in embeds]


def train(
    namer: Namer, patches: Tensor, labels: Tensor, args: argparse.Namespace
) -> None:
    """Cross-entropy of the three depths together."""
    namer.train()
    # the temperature has far to go
    scale = namer.classifier.logit_scale
    others = [p for p in namer.parameters() if p is not scale]
    groups = [dict(params=others), dict(params=[scale], lr=10 * args.lr)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [args.lr, 10 * args.lr], total_steps=args.steps, pct_start=0.1
    )
    started, right = time.time(), []
    for step in range(1, args.steps + 1):
        which = torch.randint(len(patches), (args.batch,))
        side = SIDES[int(torch.randint(len(SIDES), ()))]
        crops = crop(patches[which], side, shift=0.15, scales=(1.0, 1.6))
        guesses = namer(crops.flip(3) if torch.rand(()) < 0.5 else crops)
        losses = [F.cross_entropy(guess, labels[which]) for guess in guesses]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(namer.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        hits = [g.argmax(1).eq(labels[which]).float().mean().item() for g in guesses]
        right.append(hits)
        if step % 50 == 0:
            named = " ".join(f"{r:.3f}" for r in np.mean(right[-50:], 0))
            spent = (time.time() - started) / step
            said = f"{named} of the crops named rightly, {spent:.2f} s each"
            print(f"step {step}/{args.steps}  {said}", flush=True)


if __name__ == "__main__":
    main()
