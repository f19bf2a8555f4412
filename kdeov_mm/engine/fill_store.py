"""Fill a store with the teacher's embeddings of a config's training images."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmengine.utils import import_modules_from_strings
from torch import Tensor
from tqdm import tqdm

from ..border import built, whole_number
from ..checkpoints import (
    build_model,
    check_loaders,
    check_weights,
    read_checkpoint,
)
from ..clip import CLIPImageTeacher, EmbeddingStore
from ..clip.cached_teacher import (
    data_fingerprint,
    mirrored,
    needs_record,
    pixel_steps,
    plain_dataset,
    teacher_identity,
)
from ..clip.source import file_sha256
from ..clip.store import FORMAT, Record
from ..files import locked
from ..models import KDEOVDetector, ViLDDetector
from ..models.pixels import frozen_statistics

CHUNK = 16  # images embedded together
ShareOut: TypeAlias = Callable[
    [type, tuple[Any, ...], list[range]], tuple[int, list[str]]
]


def fill_store(
    cfg: Config,
    folder: Path | str | None = None,
    proposals: Path | None = None,
    dense: bool = False,
    shard_size: int = 256,
    share_out: ShareOut | None = None,
) -> None:
    """Embed the images, boxes and captions that a training needs, where missing.

    Args:
        cfg: training config with a teacher.
        folder: of the store; None: that of the config's ``model.teacher.store``.
        proposals: checkpoint of an earlier student, for the source ``stored``.
        dense: embed dense maps, too.
        shard_size: images in a file.
        share_out: has workers write the shards (:func:`kdeov_mm.apps.bulk.share_out`);
            None: this process does.

    Raises:
        ValueError, StoreMismatch: the config and the arguments do not go together, or
            the folder is a store of something else.
        BlockingIOError: another process is filling the store.
    """
    with built("the config's default_scope"):
        init_default_scope(cfg.get("default_scope", "mmdet"))
    check_loaders(cfg, "train_dataloader")
    whole_number("shard_size", shard_size)
    model = cfg.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("teacher"), dict):
        raise ValueError("the config has no model.teacher whose embeddings to store")
    folder = folder or cfg.model.teacher.get("store")
    if folder is None:
        raise ValueError("the config names no model.teacher.store: give --store FOLDER")
    # the manifest says what the store depends on: a store of something else is refused
    embedder = Embedder(cfg, proposals, dense)
    count = len(embedder.dataset)
    manifest = embedder.manifest() | dict(images=count, shard_size=shard_size)
    store = EmbeddingStore(folder, manifest)

    begins = range(0, count, shard_size)
    shards = [range(begin, min(begin + shard_size, count)) for begin in begins]
    with locked(store.folder):
        if share_out is None:
            made = _one_by_one(ShardWriter(store.folder, lambda: embedder), shards)
        else:
            make = partial(_start, Path.cwd(), cfg, proposals, dense)
            made, _ = share_out(ShardWriter, (store.folder.absolute(), make), shards)
    print_log(
        f"{store.folder}: {count} images in {store.num_shards} shards, {count - made} "
        "of them were there already."
    )


def _one_by_one(writer: "ShardWriter", shards: Sequence[range]) -> int:
    """Write what is missing; the number of images that were embedded."""
    total = 0
    with tqdm(total=sum(map(len, shards)), desc="embedding", unit="image") as bar:
        for number, indices in enumerate(shards):
            made, _, _ = writer.shard(number, len(shards), indices)
            total += made
            bar.update(len(indices))
    return total


def _start(place: Path, cfg: Config, proposals: Path | None, dense: bool) -> "Embedder":
    """An embedder in another process, which may be of another machine."""
    os.chdir(place)  # paths of the config are relative to it
    if imports := cfg.get("custom_imports"):
        import_modules_from_strings(**imports)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    return Embedder(cfg, proposals, dense)


class ShardWriter:
    """Writes the shards of a store that are missing or damaged.

    Args:
        folder: of the store.
        make: gives an embedder, when there is something to embed.
    """

    def __init__(self, folder: Path, make: "Callable[[], Embedder]") -> None:
        self.store, self.make = EmbeddingStore(folder), make
        self.embedder: Embedder | None = None

    def ready(self) -> tuple[int, int, list[str]]:
        """Nothing is done yet, but the worker has started."""
        return 0, 0, []

    def shard(
        self, number: int, total: int, indices: Sequence[int]
    ) -> tuple[int, int, list[str]]:
        """Write a shard, unless an earlier run did.

        Returns:
            Numbers of images that were embedded, and that were there; no errors.
        """
        if self.store.is_whole(number):
            return 0, len(indices), []
        if self.store.shard_file(number).exists():
            print_log(f"{self.store.shard_file(number)} is damaged: made again")
        self.embedder = self.embedder or self.make()
        self.store.write_shard(number, *self.embedder(indices))
        return len(indices), 0, []


class Embedder:
    """From indices of the training data to records of the store.

    Args:
        cfg: training config with a teacher.
        proposals: checkpoint of an earlier student; None for no stored boxes.
        dense: embed dense maps.
    """

    def __init__(self, cfg: Config, proposals: Path | None, dense: bool) -> None:
        # data: each image is embedded as it is and mirrored, so flips are left out
        with built("the config's training data cannot be built"):
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
        self.dataset: Any = plain_dataset(dataset)
        self.steps = pixel_steps(self.dataset, cfg.model.teacher.get("neutral", ()))
        self.captions: dict[Any, list[str]] = {}
        for step in list(self.dataset.pipeline.transforms):
            if type(step).__name__ == "LoadCaptions":
                self.captions = step.captions
            elif type(step).__name__ == "RandomFlip":
                self.dataset.pipeline.transforms.remove(step)

        # models: the live teacher, and the student with its heads
        clip = {key: cfg.model.teacher.get(key) for key in ("model", "pretrained")}
        self.teacher = CLIPImageTeacher(**clip)
        self.student: KDEOVDetector | ViLDDetector = build_model(cfg)
        heads: dict[str, Any] = self.student.distill_heads
        self.heads = [head for head in heads.values() if head.needs.crops]
        needs = [head.needs for head in self.heads]
        self.scales = list(dict.fromkeys(need.scales for need in needs))
        self.dense = dense
        # dense maps and windows need images that fill their batch
        self.one_size = dense or any(need.window for need in needs)
        self.size: tuple[int, ...] | None = None

        # the heads that take an earlier student's boxes
        self.pickers = [h for h in self.heads if "stored" in h.needs.sources]
        self.proposals = proposals
        if bool(self.pickers) != (proposals is not None):
            raise ValueError(
                "--proposals CHECKPOINT goes with a distillation head whose `sources` "
                "have 'stored', the boxes of an earlier student: the config has "
                f"{len(self.pickers)} such heads, --proposals is {proposals}."
            )
        if proposals is not None:
            content = read_checkpoint(proposals)
            check_weights(self.student, content, proposals)
            _load_checkpoint_to_model(self.student, content)

    def manifest(self) -> dict[str, Any]:
        """What the store depends on."""
        return dict(
            format=FORMAT,
            teacher=teacher_identity(self.teacher.source),
            data=data_fingerprint(self.dataset),
            pixels=self.steps,
            needs=[needs_record(head.needs) for head in self.heads],
            scales=self.scales,
            dense=self.dense,
            captions=bool(self.captions),
            proposals_sha256=self.proposals and file_sha256(self.proposals),
            proposals=[[p.proposals, p.label_iou] for p in self.pickers],
        )

    def __call__(self, indices: Sequence[int]) -> tuple[list[Any], list[Record]]:
        """Embed images; their ids and records."""
        ids: list[Any] = []
        records: list[Record] = []
        for begin in range(0, len(indices), CHUNK):
            inputs, samples = self._load(indices[begin : begin + CHUNK])
            records += self._records(inputs, samples)
            ids += [sample.img_id for sample in samples]
        return ids, records

    def _load(self, indices: Sequence[int]) -> tuple[Tensor, list[DetDataSample]]:
        """The student's inputs (B, 3, H, W), and samples with boxes as tensors."""
        items = [self.dataset.prepare_data(i) for i in indices]
        if None in items:
            broken = self.dataset.get_data_info(indices[items.index(None)])
            raise ValueError(f"{broken['img_path']} did not pass the pipeline")
        # padding and channel order are the student's, without random augmentation
        data = {key: [item[key] for item in items] for key in items[0]}
        batch = self.student.data_preprocessor(data, training=False)
        samples = batch["data_samples"]
        # mmdet's box structures or plain tensors, as the config packs them
        for sample in samples:
            boxes = sample.gt_instances.bboxes
            sample.gt_instances.bboxes = getattr(boxes, "tensor", boxes)

        # a map of a padded image is no map of the image
        sizes = {tuple(s.img_shape) for s in samples} | {batch["inputs"].shape[-2:]}
        self.size = self.size or next(iter(sizes))
        if self.one_size and sizes != {self.size}:
            raise ValueError(
                "dense maps and windows are stored for images of one size that need no "
                f"padding, got {sorted(sizes | {self.size})[:3]}: resize without "
                "keep_ratio to a multiple of pad_size_divisor, or do without them."
            )
        return batch["inputs"], samples

    def _records(
        self, inputs: Tensor, samples: list[DetDataSample]
    ) -> Iterator[Record]:
        """Embed a chunk, as it is and mirrored."""
        # the teacher's batch, and the same mirrored
        live = self.teacher.for_batch(inputs, samples, self.student.data_preprocessor)
        both = (live, live.mirrored())

        # whole images (B, 2, D), and maps (B, D, h, w)
        images = torch.stack([batch.images() for batch in both], 1)
        maps = [batch.dense() for batch in both] if self.dense else []
        # crops: for each of the scales, B tensors (2, n_b, D)
        stored = self._stored_boxes(inputs, samples)
        boxes, crops = [], []
        for scales in self.scales:
            # a mirrored image has mirrored boxes, in the same order
            own = [self._boxes(s, b, scales) for s, b in zip(samples, stored)]
            flipped = [mirrored(b, width) for b, (_, width) in zip(own, live.shapes)]
            pairs = zip(both, (own, flipped))
            embeds = torch.stack([batch.crops(b, scales) for batch, b in pairs])
            boxes.append(own)
            crops.append(embeds.split([len(b) for b in own], 1))

        # image by image: all its boxes, with the index of their scales
        none = images.new_zeros(2, 0, images.shape[-1])
        for i, sample in enumerate(samples):
            groups = [group[i] for group in boxes]
            every = torch.cat([*groups, torch.zeros(0, 4)])
            counts = torch.tensor([len(b) for b in groups], dtype=torch.long)
            texts = list(dict.fromkeys(self.captions.get(sample.img_id, ())))
            vectors = self.teacher.text_encoder.embed_prompts(texts) if texts else ()
            yield Record(
                boxes=every,
                scales=torch.arange(len(groups)).repeat_interleave(counts),
                stored=(every[:, None] == stored[i]).all(-1).any(-1),
                crops=torch.cat([none, *(group[i] for group in crops)], 1),
                image=images[i],
                dense=torch.stack([m[i] for m in maps]) if maps else None,
                captions=dict(zip(texts, vectors)),
            )

    def _boxes(
        self, sample: DetDataSample, stored: Tensor, scales: tuple[float, ...]
    ) -> Tensor:
        """All boxes (n, 4) that heads need at these crop scales."""
        boxes = [torch.zeros(0, 4)]
        for head in self.heads:
            if head.needs.scales == scales:
                boxes.append(head.fixed_boxes(sample))
                if head in self.pickers:
                    boxes.append(stored)
        return torch.cat(boxes)

    @torch.no_grad()
    def _stored_boxes(
        self, inputs: Tensor, samples: list[DetDataSample]
    ) -> list[Tensor]:
        """The earlier student's boxes (n, 4) of each image."""
        if not self.pickers:
            return [torch.zeros(0, 4) for _ in samples]
        # as in training, where the boxes are rated, but with the trained statistics;
        # all words in their order: a fusion depends on them
        with frozen_statistics(self.student.train()):
            regions = self.student.rate_regions(inputs, samples)
        return [its.cpu() for its in self.pickers[0].own_boxes(samples, regions)]
