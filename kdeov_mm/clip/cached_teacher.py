"""A teacher that reads its embeddings from a store, and what it checks before."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.dataset import BaseDataset
from torch import Tensor

from .source import CLIPSource
from .store import FORMAT, EmbeddingStore, StoreMismatch

TOLERANCE = 0.1  # pixels between a box and the stored one
# steps of a pipeline that decide the pixels, the same for an image each time
PIXEL_STEPS = ("LoadImageFromFile", "KeepOriginal", "Resize", "FixScaleResize")
# data sets around another, of whose images they are
WRAPPERS = ("RepeatDataset", "ClassBalancedDataset", "SeededDataset")
# steps that change neither pixels nor boxes
PACKING = ("PackDetInputs", "PackInputs")
NEUTRAL_STEPS = (
    *("LoadAnnotations", "LoadWords", "LoadCaptions", "FilterAnnotations"),
    *PACKING,
)


def teacher_identity(source: CLIPSource) -> dict[str, Any]:
    """What a teacher's image embeddings depend on."""
    statistics = source.image_statistics()
    return dict(source.identity, mean=statistics["mean"], std=statistics["std"])


def plain_dataset(dataset: Any) -> Any:
    """The data set inside wrappers that only repeat images, or seed their steps."""
    # of an image they give the same each time
    while type(dataset).__name__ in WRAPPERS:
        dataset = dataset.dataset
    if not isinstance(dataset, BaseDataset):
        raise StoreMismatch(
            f"a store is of one data set, not of a {type(dataset).__name__}: give each "
            "data set its own config and store, or use the live teacher."
        )
    return dataset


def pixel_steps(dataset: Any, neutral: Sequence[str] = ()) -> list[str]:
    """The steps of a data set's pipeline that decide its pixels.

    StoreMismatch where a step makes other pixels each time, or is neither known nor
    said to be ``neutral``.
    """
    steps, flips, packed = [], 0, ()
    for step in dataset.pipeline.transforms:
        name = type(step).__name__
        if name in PIXEL_STEPS:
            steps.append(repr(step))
        elif name == "RandomFlip":
            flips += 1
            _check_flip(step)
        # any other step may be random, unless it is known not to be
        elif name not in (*NEUTRAL_STEPS, *neutral):
            raise StoreMismatch(
                f"{name} does not go with stored embeddings, because it may change the "
                "image or its boxes from step to step. Take it out of the pipeline, or "
                "use the live teacher (CLIPImageTeacher). If it changes neither pixels "
                f"nor boxes, say so: teacher.neutral=('{name}',)."
            )
        if name in PACKING:
            packed = step.meta_keys
    # samples must say whose they are, and whether they were mirrored
    missing = {"img_id", *(["flip"] if flips else [])} - set(packed)
    if missing or flips > 1:
        raise StoreMismatch(
            f"{flips} RandomFlip steps and meta_keys {tuple(packed)}: stored "
            "embeddings need to know whether an image was mirrored. Use one RandomFlip "
            "at most, and name 'img_id' and 'flip' among meta_keys of PackInputs."
        )
    return steps


def _check_flip(step: Any) -> None:
    given = step.direction
    if {*(given if isinstance(given, list) else [given])} - {"horizontal", None}:
        raise StoreMismatch(
            f"RandomFlip with direction {given}: a store holds images mirrored left to "
            "right, no others. Use direction='horizontal', or the live teacher."
        )


def data_fingerprint(dataset: Any) -> str:
    """SHA-256 of a data set's images (ids, names, sizes in bytes) and boxes."""
    # the content of the images is not read: others of the same name and size pass
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        path = Path(info["img_path"])
        boxes = [list(map(float, box["bbox"])) for box in info.get("instances", ())]
        size = path.stat().st_size if path.exists() else -1
        digest.update(json.dumps([info["img_id"], path.name, size, boxes]).encode())
    return digest.hexdigest()


def needs_record(needs: Any) -> dict[str, Any]:
    """What a distillation needs, as a store's manifest holds it."""
    return json.loads(json.dumps(asdict(needs)))


def _check_heads(store: EmbeddingStore, heads: Mapping[str, Any]) -> None:
    """Refuse heads that need what the store does not hold."""
    manifest = store.manifest
    for name, head in heads.items():
        needs, missing = head.needs, []
        # no store has these; others can be made
        if needs.moving:
            raise StoreMismatch(
                f"the head {name} asks for boxes that move from step to step "
                f"({', '.join(sorted(needs.moving))}): a store holds 'truth', 'blocks' "
                "and 'stored' boxes. Change its `sources`, or use the live teacher."
            )
        # all that is missing, in one message
        if "stored" in needs.sources and not manifest["proposals_sha256"]:
            missing.append("boxes of an earlier student (--proposals CHECKPOINT)")
        if needs.dense and not manifest["dense"]:
            missing.append("dense maps (--dense)")
        if needs.captions and not manifest["captions"]:
            missing.append("captions (LoadCaptions in the pipeline)")
        # another head's crops serve as well, if they are the same
        wanted = needs_record(needs)
        if needs.crops and not any(_covers(held, wanted) for held in manifest["needs"]):
            missing.append(f"the crops of {wanted}, but those of {manifest['needs']}")
        if missing:
            raise StoreMismatch(
                f"the head {name} needs what the store {store.folder} does not hold: "
                f"{'; '.join(missing)}. Make it again (tools/cache_embeddings.py)."
            )


def _covers(held: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the crops that one head needs serve another."""
    blocks = ["grids"] if "blocks" in wanted["sources"] else []
    same = all(held[k] == wanted[k] for k in ("scales", "window", "stride", *blocks))
    return same and {*wanted["sources"]} <= {*held["sources"]}


@MODELS.register_module()
class CachedTeacher:
    """A teacher that looks its answers up in a store.

    It answers as :class:`CLIPImageTeacher` does, to 1e-3, for what the store holds:
    whole images, boxes that do not move, dense maps, captions; also mirrored.
    :class:`EmbeddingCacheHook` calls :meth:`admit` before training.

    Args:
        store: folder made by ``tools/cache_embeddings.py``.
        model, pretrained: see :class:`CLIPSource`.
        neutral: names of further pipeline steps that change neither pixels nor boxes.
    """

    is_live = False

    def __init__(
        self,
        store: str,
        model: str,
        pretrained: str | None = None,
        neutral: Sequence[str] = (),
    ) -> None:
        self.folder = Path(store)
        self.source = CLIPSource(model, pretrained)
        self.neutral = tuple(neutral)
        self._store: EmbeddingStore | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "CachedTeacher":
        """One teacher for all copies of a student (moving averages)."""
        return self

    def admit(self, dataset: Any, heads: Mapping[str, Any], preprocessor: Any) -> None:
        """Check that the store serves a training with these data and heads.

        Raises:
            StoreMismatch, FileNotFoundError: it does not, and why; there is none.
        """
        # what is known at once comes before what reads all of the data
        store = EmbeddingStore(self.folder)
        store.check(format=FORMAT, teacher=teacher_identity(self.source))
        if preprocessor.batch_augments:
            raise StoreMismatch(
                "batch_augments of the data preprocessor change the images: take them "
                "out, or use the live teacher."
            )
        _check_heads(store, heads)
        # the images and boxes of the training data, and how the student gets them
        dataset = plain_dataset(dataset)
        store.check(pixels=pixel_steps(dataset, self.neutral))
        store.check(data=data_fingerprint(dataset))
        store.check_complete()
        self._store = store

    def check_heads(self, heads: Mapping[str, Any]) -> None:
        """Raise ValueError for what no store has; :meth:`admit` compares the rest."""
        for name, head in heads.items():
            if head.needs.apart:
                raise ValueError(
                    f"the head {name} asks for the crops of each scale by themselves "
                    "(trust='scales'), and a store holds their sums: use the live "
                    "teacher."
                )

    def for_batch(
        self, inputs: Tensor, samples: SampleList, preprocessor: Any
    ) -> "StoredBatch":
        """The teacher of these samples; only size and device of the inputs count."""
        if self._store is None:
            raise RuntimeError(
                "the stored embeddings were not checked against this training: add to "
                "the config default_hooks=dict(cache=dict(type='EmbeddingCacheHook'))."
            )
        return StoredBatch(self._store, samples, inputs)


class StoredBatch:
    """The answers of a store for B samples; see :class:`TeacherBatch`."""

    def __init__(
        self, store: EmbeddingStore, samples: SampleList, inputs: Tensor
    ) -> None:
        # what the store holds, for messages and checks
        self.folder = store.folder
        self.scales = [tuple(s) for s in store.manifest["scales"]]
        self.has_dense = store.manifest["dense"]
        # where the embeddings of these images are
        self.ids = [s.metainfo["img_id"] for s in samples]
        self.stored = [store[i] for i in self.ids]
        self.mirrored = [int(bool(s.metainfo.get("flip", False))) for s in samples]
        self.shapes = [tuple(s.img_shape[:2]) for s in samples]
        self.size, self.device = tuple(inputs.shape[-2:]), inputs.device

    def images(self) -> Tensor:
        """As :class:`TeacherBatch`."""
        return F.normalize(self._whole("image"), dim=-1)

    def dense(self) -> Tensor:
        """As :class:`TeacherBatch`; ValueError where images have padding."""
        if not self.has_dense:
            raise ValueError(
                f"{self.folder} holds no dense maps: make it again with --dense"
            )
        padded = [shape for shape in self.shapes if shape != self.size]
        if padded:
            raise ValueError(
                f"images of {padded[0]} are padded to {self.size}, stored maps not: "
                "resize all images to one size, a multiple of pad_size_divisor."
            )
        return F.normalize(self._whole("dense"), dim=1)

    def _whole(self, name: str) -> Tensor:
        """``image`` or ``dense`` of all images, (B, D, ...)."""
        parts = [image.whole(name, m) for image, m in zip(self.stored, self.mirrored)]
        return self._join(torch.stack, parts)

    def captions(self, captions: Sequence[str]) -> Tensor:
        """As :class:`TeacherBatch`; ValueError where the store lacks a caption."""
        vectors = []
        for caption, image, image_id in zip(captions, self.stored, self.ids):
            if caption not in image.captions:
                raise ValueError(
                    f"{self.folder} does not hold the caption {caption!r} of image "
                    f"{image_id!r}: make it again with these captions in the pipeline."
                )
            vectors.append(image.caption(caption))
        return F.normalize(self._join(torch.stack, vectors), dim=-1)

    def stored_boxes(self, index: int) -> Tensor:
        """As :class:`TeacherBatch`."""
        # the store has them for the image as it is
        image = self.stored[index]
        boxes = image.boxes.numpy()[image.stored.numpy()]
        return torch.from_numpy(self._mirror(boxes, index))

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """As :class:`TeacherBatch`; ValueError where the store lacks a box."""
        if tuple(scales) not in self.scales:
            raise ValueError(
                f"{self.folder} holds crops of scales {self.scales}, not of "
                f"{tuple(scales)}: make it again with this config."
            )
        # boxes of several heads are stored together, with the index of their scales
        kind: int = self.scales.index(tuple(scales))
        # on the host, where the store is
        every = torch.cat([*boxes]).detach().float().cpu().numpy()
        ends = np.cumsum([len(wanted) for wanted in boxes])[:-1]
        parts, places, begin = [], [], 0
        for i, (image, asked) in enumerate(zip(self.stored, np.split(every, ends))):
            # the nearest stored box of these scales, in the image as it is
            asked = self._mirror(asked, i)
            apart = np.abs(asked[:, None] - image.boxes.numpy()).max(2)  # (n, M)
            apart[:, image.scales.numpy() != kind] = np.inf
            near = apart.min(1, initial=np.inf)
            if (near > TOLERANCE).any():
                raise ValueError(
                    f"{self.folder} does not hold the box "
                    f"{asked[near > TOLERANCE][0].tolist()} of image {self.ids[i]!r}: "
                    "make it again with this config."
                )
            if len(asked):
                places.append(apart.argmin(1) + begin)
            parts.append(image.crops(self.mirrored[i]))
            begin += len(image.boxes)
        which = torch.from_numpy(np.concatenate([*places, np.zeros(0, int)]))
        return F.normalize(self._join(torch.cat, parts, which), dim=-1)

    @torch.autocast("cpu", enabled=False)  # in which torch cannot join float16
    def _join(
        self,
        join: Callable[[list[Tensor]], Tensor],
        parts: list[Tensor],
        which: Tensor | None = None,
    ) -> Tensor:
        joined = join(parts)
        joined = joined if which is None else joined[which]
        return joined.to(self.device, non_blocking=True).float()

    def _mirror(self, boxes: np.ndarray, index: int) -> np.ndarray:
        # twice is as before: the same for boxes to and from the store
        return mirrored(boxes, self.shapes[index][1]) if self.mirrored[index] else boxes


def mirrored(boxes: Any, width: int) -> Any:
    """Boxes (n, 4) xyxy, an array or a tensor, of an image mirrored left to right."""
    result = boxes[:, [2, 1, 0, 3]]  # a copy
    result[:, [0, 2]] = width - result[:, [0, 2]]
    return result
