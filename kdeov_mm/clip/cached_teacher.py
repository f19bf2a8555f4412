"""The teacher's embeddings on disk, and a teacher that reads them.

A store is a folder: ``store.json`` says what was embedded, by which CLIP, of
which data set; shards of a fixed number of images hold the vectors, as
safetensors, memory-mapped when read. Each image is there twice, as it is and
mirrored. ``tools/cache_embeddings.py`` fills a store.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import locked, write_whole
from .source import CLIPSource

FORMAT = 1
TOLERANCE = 0.1  # pixels between a box and the stored one
# steps of a pipeline that decide the pixels, the same for an image each time
PIXEL_STEPS = ("LoadImageFromFile", "Resize", "FixScaleResize")
NEUTRAL_STEPS = (
    "LoadAnnotations",
    "LoadWords",
    "LoadCaptions",
    "FilterAnnotations",
    "PackDetInputs",
)


class StoreMismatch(ValueError):
    """A store of another teacher, data set or pipeline."""


class Record(NamedTuple):
    """What is stored of one image; the first axis is (as it is, mirrored).

    Attributes:
        boxes: (M, 4) xyxy in pixels of the pipeline's image, not mirrored.
        scales: (M,) index into the manifest's ``scales``.
        stored: (M,) bool, boxes found by an earlier student.
        crops: (2, M, D) unit vectors, float16.
        image: (2, D) unit vectors, float16.
        dense: (2, D, h, w) unit vectors, float16, or None.
        captions: caption -> (D,) unit vector, float16.
    """

    boxes: Tensor
    scales: Tensor
    stored: Tensor
    crops: Tensor
    image: Tensor
    dense: Tensor | None
    captions: dict[str, Tensor]


class EmbeddingStore:
    """A folder of shards.

    Args:
        folder: the store.
        manifest: what it must hold; None takes what it does.

    Raises:
        FileNotFoundError: there is no store, and no manifest to begin one.
        StoreMismatch: the store holds something else.
    """

    def __init__(
        self, folder: str | Path, manifest: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / "store.json"
        if not path.is_file():
            if manifest is None:
                raise FileNotFoundError(
                    f"{self.folder} holds no embeddings: make them with "
                    "python tools/cache_embeddings.py CONFIG"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(manifest, indent=1).encode())
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete the store, and make it again."
            ) from error
        if manifest is not None:
            self.check(**manifest)

    def check(self, **wanted: Any) -> None:
        """Refuse a store whose manifest differs in what is wanted.

        Raises:
            StoreMismatch: names what differs, and what to do.
        """
        wanted = json.loads(json.dumps(wanted))
        for key, value in wanted.items():
            if self.manifest.get(key) != value:
                raise StoreMismatch(
                    f"the store {self.folder} is of another {key}: it holds "
                    f"{_short(self.manifest.get(key))}, wanted is {_short(value)}. "
                    "Name another store, or delete this one and make it again with "
                    "tools/cache_embeddings.py."
                )

    @property
    def num_shards(self) -> int:
        """Shards of a finished store."""
        return -(-self.manifest["images"] // self.manifest["shard_size"])

    def shard_file(self, number: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / f"shard-{number:05d}.safetensors"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other writers out; see :func:`kdeov_mm.files.locked`."""
        return locked(self.folder)

    def write_shard(
        self, number: int, ids: Sequence[Any], records: Sequence[Record]
    ) -> None:
        """Write the records of a shard's images; it is whole or not there."""
        captions = [list(r.captions) for r in records]
        vectors = [v for r in records for v in r.captions.values()]
        tensors = dict(
            ends=torch.tensor([len(r.boxes) for r in records]).cumsum(0),
            boxes=torch.cat([r.boxes for r in records]),
            scales=torch.cat([r.scales for r in records]).to(torch.uint8),
            stored=torch.cat([r.stored for r in records]).to(torch.uint8),
            crops=torch.cat([r.crops for r in records], 1).half(),
            image=torch.stack([r.image for r in records], 1).half(),
        )
        if records[0].dense is not None:
            dense = [r.dense for r in records if r.dense is not None]
            tensors["dense"] = torch.stack(dense, 1).half()
        if vectors:
            tensors["captions"] = torch.stack(vectors).half()
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        about: dict[str, Any] = dict(shard=number, ids=list(ids), captions=captions)
        about["sha256"] = _digest(tensors, about)
        # one entry: safetensors writes several in an order that changes
        data = save(tensors, metadata={"about": json.dumps(about)})
        write_whole(self.shard_file(number), data)

    def is_whole(self, number: int) -> bool:
        """Whether a shard is there and its content is what was written."""
        path = self.shard_file(number)
        if not path.is_file():
            return False
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = _about(file)
                written = about.pop("sha256")
                return about["shard"] == number and written == _digest(tensors, about)
        except (SafetensorError, OSError, KeyError, ValueError):
            return False  # cut short, or not what safetensors writes

    def check_complete(self) -> None:
        """Refuse a store that was not finished.

        Raises:
            FileNotFoundError: names the first missing shard.
        """
        for number in range(self.num_shards):
            path = self.shard_file(number)
            if not path.is_file():
                raise FileNotFoundError(
                    f"{self.folder} has no {path.name}: finish the store with "
                    "tools/cache_embeddings.py, which goes on where it stopped."
                )

    @cached_property
    def _images(self) -> dict[Any, "StoredImage"]:
        """Image id -> where its vectors are."""
        images: dict[Any, StoredImage] = {}
        self.check_complete()
        for number in range(self.num_shards):
            path = self.shard_file(number)
            if not self.is_whole(number):
                raise ValueError(
                    f"{path} is damaged: tools/cache_embeddings.py finds and renews "
                    "damaged shards."
                )
            images.update(_images_of(safe_open(str(path), framework="pt")))
        return images

    def __getitem__(self, image_id: Any) -> "StoredImage":
        """An image's part of the store.

        Raises:
            KeyError: the store has no such image.
            ValueError: a shard is damaged.
            FileNotFoundError: a shard is missing.
        """
        if image_id not in self._images:
            raise KeyError(f"{self.folder} holds no image {image_id!r}")
        return self._images[image_id]


@dataclass(frozen=True)
class StoredImage:
    """An image's part of a shard; vectors are read when asked for.

    Attributes:
        file: the open shard.
        place: of the image in the shard.
        begin: row of its first crop.
        boxes, scales, stored: see :class:`Record`.
        captions: its captions.
        first_caption: row of the first one.
    """

    file: Any
    place: int
    begin: int
    boxes: Tensor
    scales: Tensor
    stored: Tensor
    captions: list[str]
    first_caption: int

    def crops(self, mirrored: int) -> Tensor:
        """(M, D) float16."""
        rows = slice(self.begin, self.begin + len(self.boxes))
        return self.file.get_slice("crops")[mirrored, rows]

    def whole(self, name: str, mirrored: int) -> Tensor:
        """``image``, (D,), or ``dense``, (D, h, w): float16."""
        return self.file.get_slice(name)[mirrored, self.place]

    def caption(self, text: str) -> Tensor:
        """(D,) float16 of one of its captions."""
        row = self.first_caption + self.captions.index(text)
        return self.file.get_slice("captions")[row]


def _images_of(file: Any) -> dict[Any, StoredImage]:
    about, begin, first_caption = _about(file), 0, 0
    small = {name: file.get_tensor(name) for name in ("boxes", "scales", "stored")}
    ends, images = file.get_tensor("ends").tolist(), {}
    for place, (image, captions, end) in enumerate(
        zip(about["ids"], about["captions"], ends)
    ):
        images[image] = StoredImage(
            file,
            place,
            begin,
            small["boxes"][begin:end],
            small["scales"][begin:end],
            small["stored"][begin:end].bool(),
            captions,
            first_caption,
        )
        begin, first_caption = end, first_caption + len(captions)
    return images


def _about(file: Any) -> dict[str, Any]:
    return json.loads((file.metadata() or {})["about"])


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 300 else f"{text[:300]} ..."


def teacher_identity(source: CLIPSource) -> dict[str, Any]:
    """What a teacher's image embeddings depend on."""
    statistics = source.image_statistics()
    return dict(source.identity, mean=statistics["mean"], std=statistics["std"])


def plain_dataset(dataset: Any) -> Any:
    """The data set inside wrappers that only repeat images."""
    while type(dataset).__name__ in ("RepeatDataset", "ClassBalancedDataset"):
        dataset = dataset.dataset
    if not hasattr(dataset, "pipeline") or not hasattr(dataset, "get_data_info"):
        raise StoreMismatch(
            f"a store is of one data set, not of a {type(dataset).__name__}: give each "
            "data set its own config and store, or use the live teacher."
        )
    return dataset


def pixel_steps(dataset: Any, neutral: Sequence[str] = ()) -> list[str]:
    """The steps of a data set's pipeline that decide its pixels.

    Args:
        dataset: an mm data set.
        neutral: further steps that change neither pixels nor boxes.

    Raises:
        StoreMismatch: a step makes other pixels each time, or is not known.
    """
    steps, flips, packed = [], 0, ()
    for step in dataset.pipeline.transforms:
        name = type(step).__name__
        if name in PIXEL_STEPS:
            steps.append(repr(step))
        elif name == "RandomFlip":
            flips += 1
            _check_flip(step)
        elif name not in (*NEUTRAL_STEPS, *neutral):
            raise StoreMismatch(
                f"{name} does not go with stored embeddings: it may change the picture "
                "or its boxes from step to step, so that an embedding made once is not "
                "that of what the student sees. Take it out of the pipeline, or use "
                "the live teacher (CLIPImageTeacher). If it changes neither pixels nor "
                f"boxes, say so: teacher.neutral=('{name}',)."
            )
        if name == "PackDetInputs":
            packed = step.meta_keys
    missing = {"img_id", *(["flip"] if flips else [])} - set(packed)
    if missing or flips > 1:
        raise StoreMismatch(
            f"{flips} RandomFlip steps and meta_keys {tuple(packed)}: stored "
            "embeddings need to know whether an image was mirrored. Use one RandomFlip "
            "at most, and name 'img_id' and 'flip' among meta_keys of PackDetInputs."
        )
    return steps


def _check_flip(step: Any) -> None:
    directions = (
        step.direction if isinstance(step.direction, list) else [step.direction]
    )
    if set(directions) - {"horizontal", None}:
        raise StoreMismatch(
            f"RandomFlip with direction {step.direction}: a store holds images as they "
            "are and mirrored left to right, no others. Use direction='horizontal', or "
            "the live teacher."
        )


def data_fingerprint(dataset: Any) -> str:
    """SHA-256 of a data set's images (ids, names, sizes in bytes) and boxes.

    The content of the images is not read: others of the same name and size pass.
    """
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        path = Path(info["img_path"])
        boxes = [list(map(float, box["bbox"])) for box in info.get("instances", ())]
        size = path.stat().st_size if path.exists() else -1
        digest.update(json.dumps([info["img_id"], path.name, size, boxes]).encode())
    return digest.hexdigest()


def asked_of(head: Any) -> dict[str, Any]:
    """What a distillation head asks of the teacher that a store can hold."""
    keys = ("sources", "grids", "scales", "window", "stride")
    return {key: getattr(head, key) for key in keys if hasattr(head, key)}


def _check_heads(store: EmbeddingStore, heads: Mapping[str, Any]) -> None:
    """Refuse heads that ask for what the store does not hold."""
    manifest = store.manifest
    for name, head in heads.items():
        asked = json.loads(json.dumps(asked_of(head)))
        sources = set(asked.get("sources", ()))
        missing = []
        if "stored" in sources and not manifest["proposals_sha256"]:
            missing.append("boxes of an earlier student (--proposals CHECKPOINT)")
        if "window" in asked and asked["window"] is None and not manifest["dense"]:
            missing.append("dense maps (--dense)")
        if getattr(head, "contrast", None) is not None and not manifest["captions"]:
            missing.append("captions (LoadCaptions in the pipeline)")
        crops = sources or asked.get("window")
        if crops and not any(_covers(held, asked) for held in manifest["heads"]):
            missing.append(f"the crops of {asked}, but those of {manifest['heads']}")
        if missing:
            raise StoreMismatch(
                f"the head {name} needs what the store {store.folder} does not hold: "
                f"{'; '.join(missing)}. Make it again with this config: "
                "tools/cache_embeddings.py."
            )


def _covers(held: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a store with the crops of one head serves another."""
    same = {"scales", "window", "stride"}
    if "blocks" in asked.get("sources", ()):
        same.add("grids")
    return all(held.get(k) == asked.get(k) for k in same) and set(
        asked.get("sources", ())
    ) <= set(held.get("sources", ()))


@MODELS.register_module()
class CachedTeacher:
    """A teacher that looks its answers up in a store.

    It answers as :class:`CLIPImageTeacher` does, to 1e-3, for what the store
    holds: whole images, boxes that do not move, dense maps, captions; also
    mirrored. :class:`kdeov_mm.engine.EmbeddingCacheHook` checks before training
    that store, CLIP, data set, pipeline and distillation heads belong together.

    Args:
        store: folder made by ``tools/cache_embeddings.py``.
        model: see :class:`CLIPSource`.
        pretrained: see :class:`CLIPSource`.
        neutral: names of pipeline steps, besides those known, that change
            neither pixels nor boxes.
    """

    sees_pixels = False

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
        """One teacher for all copies of a student (moving averages): itself."""
        return self

    def admit(self, dataset: Any, heads: Mapping[str, Any], preprocessor: Any) -> None:
        """Check that the store serves this training; to be called before it.

        Args:
            dataset: the training data.
            heads: the distillation heads.
            preprocessor: the detector's.

        Raises:
            StoreMismatch: with the reason.
            FileNotFoundError: there is no store.
        """
        store = EmbeddingStore(self.folder)
        store.check(format=FORMAT, teacher=teacher_identity(self.source))
        if getattr(preprocessor, "batch_augments", None):
            raise StoreMismatch(
                "batch_augments of the data preprocessor change the picture after the "
                "pipeline: take them out, or use the live teacher."
            )
        for name, head in heads.items():
            moving = {"own", "random"} & set(getattr(head, "sources", ()))
            if moving:
                raise StoreMismatch(
                    f"the head {name} asks for boxes that move from step to step "
                    f"({', '.join(sorted(moving))}): a store holds 'truth', 'blocks' "
                    "and 'stored' boxes. Change its `sources`, or use the live teacher."
                )
        dataset = plain_dataset(dataset)
        store.check(pixels=pixel_steps(dataset, self.neutral))
        store.check(data=data_fingerprint(dataset))
        _check_heads(store, heads)
        store.check_complete()
        self._store = store

    def for_batch(self, samples: SampleList) -> "CachedBatch":
        """The teacher of these samples."""
        if self._store is None:
            raise RuntimeError(
                "the stored embeddings were not checked against this training: add "
                "default_hooks=dict(cache=dict(type='EmbeddingCacheHook')) to the "
                "config."
            )
        return CachedBatch(self._store, samples)


class CachedBatch:
    """The teacher's answers for one batch; see :class:`CLIPImageTeacher`."""

    def __init__(self, store: EmbeddingStore, samples: SampleList) -> None:
        self.folder = store.folder
        self.scales = [tuple(s) for s in store.manifest["scales"]]
        self.has_dense = store.manifest["dense"]
        self.ids = [s.metainfo["img_id"] for s in samples]
        self.images = [store[i] for i in self.ids]
        self.mirrored = [int(bool(s.metainfo.get("flip", False))) for s in samples]
        self.shapes = [tuple(s.img_shape[:2]) for s in samples]

    def embed_images(self, pixels: Tensor, shapes: Sequence[Any]) -> Tensor:
        """(B, D) unit vectors of the whole images."""
        return F.normalize(self._whole("image", pixels), dim=-1)

    def embed_dense(self, pixels: Tensor) -> Tensor:
        """(B, D, h, w) unit vectors at each of the patches."""
        if not self.has_dense:
            raise ValueError(
                f"{self.folder} holds no dense maps: make it again with --dense"
            )
        padded = [s for s in self.shapes if s != tuple(pixels.shape[-2:])]
        if padded:
            raise ValueError(
                f"images of {padded[0]} are padded to {tuple(pixels.shape[-2:])}, and "
                "the stored dense maps are without padding: resize all images to one "
                "size, a multiple of pad_size_divisor."
            )
        return F.normalize(self._whole("dense", pixels), dim=1)

    def _whole(self, name: str, pixels: Tensor) -> Tensor:
        parts = [image.whole(name, m) for image, m in zip(self.images, self.mirrored)]
        return torch.stack(parts).to(pixels.device).float()

    def embed_captions(
        self, captions: Sequence[str], device: torch.device | str = "cpu"
    ) -> Tensor:
        """(B, D) unit vectors of one caption per image."""
        for caption, image, image_id in zip(captions, self.images, self.ids):
            if caption not in image.captions:
                raise ValueError(
                    f"{self.folder} does not hold the caption {caption!r} of image "
                    f"{image_id!r}: make it again with these captions in the pipeline."
                )
        vectors = [image.caption(text) for text, image in zip(captions, self.images)]
        return F.normalize(torch.stack(vectors).to(device).float(), dim=-1)

    def stored_boxes(self, i: int) -> Tensor:
        """An earlier student's boxes in the i-th image: (n, 4), xyxy, pixels."""
        image = self.images[i]
        return self._mirror(image.boxes[image.stored], i)

    def embed_crops(
        self,
        pixels: Tensor,
        boxes: Sequence[Tensor],
        scales: Sequence[float] = (1.0, 1.5),
    ) -> Tensor:
        """(sum n_b, D) unit vectors of B tensors (n_b, 4).

        Raises:
            ValueError: a box, or these crop scales, are not in the store.
        """
        if tuple(scales) not in self.scales:
            raise ValueError(
                f"{self.folder} holds crops of scales {self.scales}, not of "
                f"{tuple(scales)}: make it again with this config."
            )
        kind = self.scales.index(tuple(scales))
        parts = []
        for i, (image, wanted) in enumerate(zip(self.images, boxes)):
            asked = self._mirror(wanted.detach().float().cpu(), i)
            apart = torch.cdist(asked, image.boxes, p=torch.inf)
            apart = apart.masked_fill(image.scales != kind, torch.inf)
            near, which = (
                apart.min(1) if apart.numel() else (asked[:, 0] + torch.inf,) * 2
            )
            if (near > TOLERANCE).any():
                raise ValueError(
                    f"{self.folder} does not hold the box "
                    f"{asked[near > TOLERANCE][0].tolist()} of image {self.ids[i]!r}: "
                    "make it again with this config."
                )
            parts.append(image.crops(self.mirrored[i])[which.long()])
        return F.normalize(torch.cat(parts).to(pixels.device).float(), dim=-1)

    def _mirror(self, boxes: Tensor, i: int) -> Tensor:
        """Boxes (n, 4) of the i-th image, mirrored if it is."""
        if not self.mirrored[i]:
            return boxes
        x1, y1, x2, y2 = boxes.T
        return torch.stack([self.shapes[i][1] - x2, y1, self.shapes[i][1] - x1, y2], 1)
