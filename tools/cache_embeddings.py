"""Fill a store with the teacher's embeddings of a config's training images.

    python tools/cache_embeddings.py configs/kdeov/kdeov_n_shapes_cached.py
    python tools/cache_embeddings.py CONFIG --proposals CHECKPOINT

What is embedded follows from the config: whole images; the boxes that its
distillation heads ask for each time; captions, where its pipeline loads them; dense
maps, with --dense; each also mirrored. The boxes 'stored' are those of an earlier
student, --proposals. A killed run goes on where it stopped; damaged shards are found
and made again.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor
from tqdm import tqdm

from kdeov_mm.clip import CLIPImageTeacher, EmbeddingStore, StoreMismatch
from kdeov_mm.clip.cached_teacher import (
    FORMAT,
    Record,
    asked_of,
    data_fingerprint,
    pixel_steps,
    plain_dataset,
    teacher_identity,
)
from kdeov_mm.clip.source import file_sha256
from kdeov_mm.models import KDEOVDetector, words_of
from kdeov_mm.models.pixels import undo_normalisation

CHUNK = 16  # images that pass the teacher together


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", help="training config")
    parser.add_argument(
        "--store", type=Path, help="folder (default: the config's model.teacher.store)"
    )
    parser.add_argument(
        "--proposals", type=Path, help="a student's checkpoint, for 'stored' boxes"
    )
    parser.add_argument("--dense", action="store_true", help="dense maps too")
    parser.add_argument("--shard-size", type=int, default=256, help="images in a file")
    args = parser.parse_args(argv)
    if args.shard_size < 1:
        parser.error("--shard-size needs at least one image")
    try:
        made = fill(args)
    except (StoreMismatch, OSError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(made)
    return 0


def fill(args: argparse.Namespace) -> str:
    """Write what is missing; say what was done."""
    cfg = Config.fromfile(args.config, lazy_import=False)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    if not cfg.model.get("teacher"):
        raise ValueError(f"{args.config} has no model.teacher whose answers to keep")
    folder = args.store or cfg.model.teacher.get("store")
    if folder is None:
        raise ValueError(f"{args.config} names no store: give --store FOLDER")
    embed = Embedder(cfg, args.proposals, args.dense)
    count = len(embed.dataset)
    manifest = embed.manifest() | dict(images=count, shard_size=args.shard_size)
    store = EmbeddingStore(folder, manifest)
    with store.locked():
        shards = range(store.num_shards)
        there = [n for n in shards if store.shard_file(n).exists()]
        whole = {n for n in there if store.is_whole(n)}
        for number in sorted(set(there) - whole):
            print(f"{store.shard_file(number)} is damaged and is made again")
        done = sum(size_of(n, args.shard_size, count) for n in whole)
        bar = tqdm(total=count, initial=done, desc="embedding", unit="image")
        for number in shards:
            if number not in whole:
                begin = number * args.shard_size
                size = size_of(number, args.shard_size, count)
                ids, records = embed(range(begin, begin + size), bar)
                store.write_shard(number, ids, records)
        bar.close()
    return (
        f"{folder}: {count} images in {store.num_shards} shards, "
        f"{len(whole)} of them were there already."
    )


def size_of(number: int, shard_size: int, count: int) -> int:
    """Images in a shard; the last one may be smaller."""
    return min(shard_size, count - number * shard_size)


class Embedder:
    """From indices of the training data to records of the store.

    Args:
        cfg: the training config.
        proposals: checkpoint of an earlier student; None for no stored boxes.
        dense: embed dense maps.
    """

    def __init__(self, cfg: Config, proposals: Path | None, dense: bool) -> None:
        self.dataset: Any = plain_dataset(DATASETS.build(cfg.train_dataloader.dataset))
        neutral = cfg.model.teacher.get("neutral", ())
        self.steps = pixel_steps(self.dataset, neutral)
        steps = self.dataset.pipeline.transforms
        self.dataset.pipeline.transforms = [
            step for step in steps if type(step).__name__ != "RandomFlip"
        ]
        loaders = [s for s in steps if type(s).__name__ == "LoadCaptions"]
        self.captions = loaders[0].captions if loaders else {}
        clip = {k: cfg.model.teacher.get(k) for k in ("model", "pretrained")}
        self.teacher = CLIPImageTeacher(**clip)
        self.proposals, self.dense = proposals, dense
        self.student: KDEOVDetector = MODELS.build(cfg.model).eval()
        heads: list[Any] = list(self.student.pupils.values())
        self.heads = [
            h for h in heads if hasattr(h, "scales") and getattr(h, "sources", True)
        ]
        self.own: Any = next(
            (h for h in heads if "stored" in getattr(h, "sources", ())), None
        )
        # maps and windows need images that fill their batch
        self.one_size = dense or any(getattr(h, "window", None) for h in heads)
        self.size: tuple[int, ...] | None = None
        self._check_proposals()
        if proposals is not None:
            load_checkpoint(self.student, str(proposals), map_location="cpu")
            # box distributions are a matter of training; BatchNorm stays as it is
            self.student.bbox_head.head_module.training = True

    def _check_proposals(self) -> None:
        if self.own is not None and self.proposals is None:
            raise ValueError(
                "the config asks for 'stored' boxes, those of an earlier student: give "
                "--proposals CHECKPOINT, or take 'stored' out of `sources`."
            )
        if self.proposals is not None and self.own is None:
            raise ValueError(
                "--proposals are boxes for a distillation head with 'stored' among its "
                "`sources`, and the config has none."
            )

    def manifest(self) -> dict[str, Any]:
        """What the store depends on."""
        student = None if self.proposals is None else file_sha256(self.proposals)
        return dict(
            format=FORMAT,
            teacher=teacher_identity(self.teacher.source),
            data=data_fingerprint(self.dataset),
            pixels=self.steps,
            heads=[asked_of(head) for head in self.heads],
            scales=[list(s) for s in self.scales()],
            dense=self.dense,
            captions=bool(self.captions),
            proposals_sha256=student,
            proposals=self.own.proposals if self.own is not None else None,
        )

    def scales(self) -> list[tuple[float, ...]]:
        """The different crop scales that the heads ask for."""
        return list(dict.fromkeys(tuple(head.scales) for head in self.heads))

    def __call__(
        self, indices: Sequence[int], bar: Any
    ) -> tuple[list[Any], list[Record]]:
        """Embed images; their ids and records."""
        ids: list[Any] = []
        records: list[Record] = []
        for begin in range(0, len(indices), CHUNK):
            pixels, samples = self.load(indices[begin : begin + CHUNK])
            records += self.records(pixels, samples)
            ids += [sample.img_id for sample in samples]
            bar.update(len(samples))
        return ids, records

    def load(self, indices: Sequence[int]) -> tuple[Tensor, list[DetDataSample]]:
        """Images (B, 3, H, W), RGB in [0, 1], black where padded; and samples."""
        items = [self.dataset.prepare_data(i) for i in indices]
        if None in items:
            broken = self.dataset.get_data_info(indices[items.index(None)])
            raise ValueError(f"{broken['img_path']} did not pass the pipeline")
        batch = self.student.data_preprocessor(
            dict(
                inputs=[item["inputs"] for item in items],
                data_samples=[item["data_samples"] for item in items],
            ),
            training=False,
        )
        samples = batch["data_samples"]
        for sample in samples:
            boxes = sample.gt_instances.bboxes
            sample.gt_instances.bboxes = getattr(boxes, "tensor", boxes)
        shapes = [s.img_shape for s in samples]
        sizes = {*map(tuple, shapes), tuple(batch["inputs"].shape[-2:])}
        self.size = self.size or next(iter(sizes))
        if self.one_size and sizes != {self.size}:
            raise ValueError(
                "dense maps and windows are stored for images of one size that need no "
                f"padding, got {sorted(sizes | {self.size})[:3]}: resize without "
                "keep_ratio to a multiple of pad_size_divisor, or do without them."
            )
        preprocessor = self.student.data_preprocessor
        return undo_normalisation(preprocessor, batch["inputs"], shapes), samples

    def records(self, pixels: Tensor, samples: list[DetDataSample]) -> Iterator[Record]:
        """Embed a chunk, as it is and mirrored."""
        stored = self.stored_boxes(samples, pixels)
        asked: dict[tuple[float, ...], list[list[Tensor]]] = {
            scales: [[] for _ in samples] for scales in self.scales()
        }
        for head in self.heads:
            for i, sample in enumerate(samples):
                boxes, scales = head.fixed_boxes(sample)
                asked[scales][i].append(boxes)
                if "stored" in getattr(head, "sources", ()):
                    asked[scales][i].append(stored[i])
        boxes = {s: [torch.cat(b) for b in parts] for s, parts in asked.items()}
        both = [self.answers(pixels, samples, boxes, m) for m in (False, True)]
        for i, sample in enumerate(samples):
            mine = [b[i] for b in boxes.values()]
            texts = list(dict.fromkeys(self.captions.get(sample.img_id, ())))
            yield Record(
                boxes=torch.cat([*mine, torch.zeros(0, 4)]),
                scales=torch.cat(
                    [torch.full((len(b),), k) for k, b in enumerate(mine)]
                    or [torch.zeros(0)]
                ),
                stored=torch.cat(
                    [is_in(b, stored[i]) for b in mine] or [torch.zeros(0).bool()]
                ),
                crops=torch.stack([answer["crops"][i] for answer in both]),
                image=torch.stack([answer["image"][i] for answer in both]),
                dense=torch.stack([answer["dense"][i] for answer in both])
                if self.dense
                else None,
                captions=dict(zip(texts, self.teacher.embed_captions(texts)))
                if texts
                else {},
            )

    def answers(
        self,
        pixels: Tensor,
        samples: list[DetDataSample],
        boxes: dict[tuple[float, ...], list[Tensor]],
        mirrored: bool,
    ) -> dict[str, Any]:
        """The teacher's vectors per image: crops (M, D), image (D,), dense map."""
        shapes = [s.img_shape for s in samples]
        if mirrored:
            pixels = pixels.clone()
            for image, (_, width) in zip(pixels, shapes):
                image[..., :width] = image[..., :width].flip(-1)
        crops: list[list[Tensor]] = [[] for _ in samples]
        for scales, parts in boxes.items():
            if mirrored:
                parts = [mirror(b, s[1]) for b, s in zip(parts, shapes)]
            embeds = self.teacher.embed_crops(pixels, parts, scales)
            for mine, embed in zip(crops, embeds.split([len(b) for b in parts])):
                mine.append(embed)
        image = self.teacher.embed_images(pixels, shapes)
        nothing = image[:0]
        return dict(
            crops=[torch.cat([*mine, nothing]) for mine in crops],
            image=image,
            dense=self.teacher.embed_dense(pixels) if self.dense else None,
        )

    @torch.no_grad()
    def stored_boxes(
        self, samples: list[DetDataSample], pixels: Tensor
    ) -> list[Tensor]:
        """The earlier student's boxes of each image: (n, 4)."""
        if self.own is None:
            return [torch.zeros(0, 4) for _ in samples]
        student = self.student
        preprocessor = student.data_preprocessor
        inputs = pixels * 255
        if preprocessor._enable_normalize:
            inputs = (inputs - preprocessor.mean) / preprocessor.std
        # all words in their order: with a fusion, the boxes depend on them
        feats, text, _ = student._feats_and_text(inputs, words_of(samples))
        _, locations = student.bbox_head.loss_and_locations(feats, text, samples)
        return [self.own.own_boxes(s, locations, i) for i, s in enumerate(samples)]


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes (n, 4) xyxy of an image mirrored left to right."""
    return torch.stack(
        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
    )


def is_in(boxes: Tensor, some: Tensor) -> Tensor:
    """Which boxes (n, 4) are among some (m, 4): (n,) bool."""
    return (boxes[:, None] == some[None]).all(-1).any(-1)


if __name__ == "__main__":
    sys.exit(main())
