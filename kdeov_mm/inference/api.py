"""KDEOV: images and words in one object."""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import mmcv
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from PIL import Image
from torch import Tensor

from ..checkpoints import load_model, read_checkpoint, read_config
from ..models import FoldedDetector
from ..vocabulary import Asked, Vocabulary, as_vocabulary
from .pictures import check_pixels, read_image, to_bgr

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor


class KDEOV:
    """A student with its words: images and texts to vectors, classes and boxes.

    A picture is a path; a PIL image; a numpy array (H, W, 3) or (H, W), uint8 RGB as
    PIL's; or a tensor (3, H, W), RGB, uint8 or floats in [0, 1], not normalised.
    Methods take one picture, a list of them (of any kinds and sizes), or a batch
    (B, 3, H, W) or (B, H, W, 3), and answer in the order of the pictures. Pictures
    keep their proportions and are padded by the model's own preprocessor, each as if
    alone, so a batch says the same as its pictures one by one.

    Args:
        model: :class:`KDEOVDetector` or :class:`ImageTextModel`, with its config as
            ``model.cfg``; see :meth:`from_config` and :meth:`from_checkpoint`.
        batch_size: pictures that pass the model at once.
    """

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self.size = test_size(model.cfg)

    @classmethod
    def from_config(
        cls,
        config: str | Path | Config,
        checkpoint: str | Path | None = None,
        device: str = "cpu",
    ) -> "KDEOV":
        """Build from a config, with a checkpoint's weights or untrained.

        Raises:
            FileNotFoundError: there is no such config or checkpoint.
        """
        if checkpoint is not None:
            return cls(load_model(config, checkpoint, device))
        if not isinstance(config, Config):
            config = Config.fromfile(config, lazy_import=False)
        print_log(
            "KDEOV.from_config without a checkpoint: the student is NOT TRAINED.",
            "current",
            level=logging.WARNING,
        )
        init_default_scope(config.get("default_scope", "mmdet"))
        model = MODELS.build(config.model)
        model.init_weights()
        model.cfg = config
        return cls(model.to(device))

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, device: str = "cpu") -> "KDEOV":
        """Build from a checkpoint of ``tools/train.py`` alone, which holds its config.

        The config is read as data and not run.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is damaged, holds no config, or one that cannot be read.
        """
        meta = read_checkpoint(checkpoint).get("meta")
        config = read_config((meta or {}).get("cfg"), strict=True)
        if not config or "model" not in config:
            raise ValueError(
                f"{checkpoint} holds no config: use KDEOV.from_config(CONFIG, "
                "CHECKPOINT)."
            )
        return cls(load_model(Config(config), checkpoint, device))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides in pixels, of which :meth:`encode_image` takes the nearest."""
        head = self.model.global_head
        crops = head.crop_sizes if head is not None and head.crops else ()
        return tuple(sorted({*crops, self.size}))

    # ------------------------------------------------------------ the global path

    @torch.no_grad()
    def encode_image(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Pictures to unit vectors (B, D), in the space of :meth:`encode_text`.

        A picture's longer side is resized to the nearest of :attr:`sizes`: those at
        which the model has learnt crops and whole images.

        Raises:
            ValueError: the model has no global head, or a picture is none.
            OSError: a file that cannot be read.
        """
        head = self.model.global_head
        if head is None:
            raise ValueError(
                "this model has no global head, and no embeddings of images: train one "
                "with it, e.g. configs/kdeov/kdeov_n_shapes_joint.py."
            )
        pictures = [_as_bgr(p) for p in _listed(images)]
        sides = [min(self.sizes, key=lambda n: abs(n - max(p.shape))) for p in pictures]
        embeds: dict[int, Tensor] = {}
        for which, batch in self._batches(pictures, sides):
            said = self.model(**batch, mode="tensor")
            embeds.update(zip(which, said["visual_features"]))
        if not embeds:
            device = next(self.model.parameters()).device
            return torch.zeros(0, head.projection.embed_dims, device=device)
        return torch.stack([embeds[i] for i in range(len(pictures))])

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str] | Tensor) -> Tensor:
        """Sentences, as they are, to unit vectors (N, D).

        Args:
            texts: one sentence, a list, or tokens (N, context) of this CLIP.
        """
        device = next(self.model.parameters()).device
        sentences = [texts] if isinstance(texts, str) else texts
        return self.model.text_encoder.embed_prompts(sentences, device)

    @torch.no_grad()
    def zero_shot_classify(
        self, images: Picture | Sequence[Picture], names: Asked
    ) -> Tensor:
        """Logits (B, K) of K classes; their softmax is a distribution over them.

        Args:
            images: pictures.
            names: K words, with the templates of the model's text encoder; a tuple of
                words are synonyms.

        Raises:
            ValueError: the model has no global head, or a picture is none.
        """
        embeds = self.encode_image(images)
        text = self.model.embed(self._vocabulary(names))
        return self.model.global_head.logits(embeds, text)

    # ------------------------------------------------------------------ detection

    @torch.no_grad()
    def open_vocabulary_detect(
        self,
        images: Picture | Sequence[Picture],
        names: Asked | None = None,
        score_threshold: float = 0.2,
        nms_threshold: float = 0.5,
        *,
        class_names: Asked | None = None,
    ) -> list[dict[str, Any]]:
        """Find words in pictures.

        Args:
            images: pictures.
            names: K words; a tuple of words are synonyms.
            score_threshold: boxes below are left out, in [0, 1].
            nms_threshold: of boxes of a class that overlap more (IoU), the best stays.
            class_names: another name of ``names``, the original KDEOV's.

        Returns:
            Of each picture ``boxes`` (n, 4), xyxy in its pixels, ``scores`` (n,),
            ``labels`` (n,), that index the names, and ``names``, n strings; best first.

        Raises:
            ValueError: the model has no detection head, thresholds outside [0, 1], no
                words, or a picture is none.
        """
        for key in ("score_threshold", "nms_threshold"):
            if not 0 <= locals()[key] <= 1:
                raise ValueError(f"{key} lies in [0, 1], got {locals()[key]}")
        samples = self.find(
            [_as_bgr(p) for p in _listed(images)],
            self._vocabulary(class_names if names is None else names),
            score_threshold,
            nms_threshold,
        )
        return [
            dict(
                boxes=found.bboxes,
                scores=found.scores,
                labels=found.labels,
                names=found.label_names,
            )
            for found in (sample.pred_instances for sample in samples)
        ]

    @torch.no_grad()
    def find(
        self,
        pictures: Sequence[np.ndarray],
        vocabulary: Vocabulary,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
    ) -> list[DetDataSample]:
        """The detector's ``predict`` of pictures of any sizes.

        Args:
            pictures: (H, W, 3) uint8 BGR, mm's channel order.
            words: of :meth:`take_words`.
            score_threshold: boxes below are left out; None: ``test_cfg``'s.
            nms_threshold: IoU, within a class; None: ``test_cfg``'s.

        Returns:
            A sample of each picture, with its words as ``text``; ``pred_instances``
            has ``bboxes`` (n, 4), xyxy in pixels of the picture, ``scores`` (n,),
            ``labels`` (n,) and ``label_names``, best first.

        Raises:
            ValueError: the model has no detection head.
        """
        if not getattr(self.model, "with_bbox", False):
            raise ValueError(
                f"a {type(self.model).__name__} finds no boxes: use the checkpoint of "
                "a KDEOVDetector."
            )
        folded = isinstance(self.model, FoldedDetector)
        # thresholds and vectors are passed down: the model is the same for all calls
        cfg = copy.deepcopy(self.model.bbox_head.test_cfg)
        if score_threshold is not None:
            cfg.score_thr = score_threshold
        if nms_threshold is not None:
            cfg.nms.iou_threshold = nms_threshold
        text = None if folded else self.model.embed(vocabulary)
        found: dict[int, DetDataSample] = {}
        for which, batch in self._batches(pictures, [self.size] * len(pictures)):
            for sample in batch["data_samples"]:
                sample.set_metainfo(dict(words=vocabulary.words))
            samples = self.model.predict(
                batch["inputs"], batch["data_samples"], text=text, cfg=cfg
            )
            found.update(zip(which, samples))
        for sample in found.values():
            boxes = sample.pred_instances
            if score_threshold is not None:  # its logit rounds
                sample.pred_instances = boxes[boxes.scores >= score_threshold]
        return [found[i] for i in range(len(pictures))]

    # -------------------------------------------------------------------- helpers

    def _vocabulary(self, names: Asked | None) -> Vocabulary:
        """The words of a call; None: those of a folded detector."""
        if names is None and isinstance(self.model, FoldedDetector):
            names = self.model.words
        return as_vocabulary(names)

    def _batches(
        self, pictures: Sequence[np.ndarray], sides: Sequence[int]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Pictures (H, W, 3) BGR, their longer sides resized, as the model's input.

        Those of one padded shape come together, so padding is that of a picture alone.
        """
        ready: dict[tuple[int, ...], list[tuple[int, Tensor, DetDataSample]]] = {}
        for i, (picture, side) in enumerate(zip(pictures, sides)):
            size = mmcv.rescale_size(picture.shape[1::-1], (side, side))
            small = mmcv.imresize(picture, tuple(max(n, 1) for n in size))
            factors = (n / o for n, o in zip(small.shape[1::-1], picture.shape[1::-1]))
            meta = dict(
                ori_shape=picture.shape[:2],
                img_shape=small.shape[:2],
                scale_factor=tuple(factors),
            )
            pixels = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
            data = dict(inputs=[pixels], data_samples=[DetDataSample(metainfo=meta)])
            data = self.model.data_preprocessor(data, False)
            shape = tuple(data["inputs"].shape)
            batch = ready.setdefault(shape, [])
            batch.append((i, data["inputs"], data["data_samples"][0]))
            if len(batch) == self.batch_size:
                yield _joined(ready.pop(shape))
        for batch in ready.values():
            yield _joined(batch)


def _joined(
    batch: Sequence[tuple[int, Tensor, DetDataSample]],
) -> tuple[list[int], dict[str, Any]]:
    """The numbers of pictures, and their inputs as one."""
    which, inputs, samples = zip(*batch)
    return list(which), dict(inputs=torch.cat(inputs), data_samples=list(samples))


def test_size(config: Config) -> int:
    """The longer side of the inputs of a config's test pipeline."""
    loader = config.get("test_dataloader") or {}
    dataset = loader.get("dataset") or {}
    while "dataset" in dataset:  # a wrapper
        dataset = dataset["dataset"]
    scales = [step["scale"] for step in dataset.get("pipeline", ()) if "scale" in step]
    if not scales:
        raise ValueError(
            "the config's test pipeline resizes nothing (no step of "
            "test_dataloader.dataset.pipeline has a `scale`): the size of the model's "
            "input is not known."
        )
    return max(scales[-1]) if not isinstance(scales[-1], int) else scales[-1]


def _listed(images: Any) -> list[Any]:
    """One picture, a list, or a batch -> a list of pictures."""
    if isinstance(images, (np.ndarray, Tensor)):
        return [*images] if images.ndim == 4 else [images]
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    return [*images]


def _as_bgr(picture: Any) -> np.ndarray:
    """A picture as (H, W, 3) uint8 BGR, mm's channel order.

    Raises:
        ValueError: it is none of those in :class:`KDEOV`.
        OSError: a file that cannot be read.
    """
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return to_bgr(picture)
    if isinstance(picture, Tensor):
        picture = _pixels(picture)
    if not isinstance(picture, np.ndarray):
        raise ValueError(
            "a picture is a path, a PIL image, an array (H, W, 3) or a tensor "
            f"(3, H, W), got a {type(picture).__name__}"
        )
    return np.ascontiguousarray(check_pixels(picture, "RGB")[..., ::-1])


def _pixels(picture: Tensor) -> np.ndarray:
    """A tensor (3, H, W), uint8 or in [0, 1] -> (H, W, 3) uint8."""
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(
            f"expected a tensor (3, H, W) or (B, 3, H, W), got {tuple(picture.shape)}"
        )
    picture = picture.detach().cpu()
    if picture.dtype != torch.uint8:
        low, high = picture.min().item(), picture.max().item()
        if not (picture.is_floating_point() and -0.01 <= low <= high <= 1.01):
            raise ValueError(
                "expected a tensor of uint8, or of floats in [0, 1], before any "
                f"normalisation; got {picture.dtype} from {low:.3g} to {high:.3g}"
            )
        picture = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return picture.permute(1, 2, 0).numpy()
