"""KDEOV: images and words in one object."""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mmcv
import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from PIL import Image
from torch import Tensor

from ..border import items_of, real_number, taken_apart, whole_number
from ..checkpoints import load_model, own_config, read_checkpoint
from ..datasets.segmentation import BACKGROUND
from ..models import FoldedDetector, SegStudent, TextEmbeds
from ..models.postprocess import set_suppression
from ..vocabulary import Asked, Vocabulary, Words, as_vocabulary
from ..yolo_world import config_with_words, is_yolo_world, state_of
from .images import AnyImage, as_rgb

T = TypeVar("T")
MAX_SIDE = 8192  # of inputs, in pixels
MAX_PIXELS = 32 * 640 * 640  # of the inputs that pass the model at once


class Query(NamedTuple):
    """What is looked for, embedded once for any number of images.

    Attributes:
        words: K classes.
        text: their vectors; None where they are folded into the model.
        cfg: ``test_cfg`` with the thresholds that are asked.
        score_threshold: boxes below are left out; 0: what ``cfg`` leaves.
    """

    words: tuple[Words, ...]
    text: TextEmbeds | None
    cfg: ConfigDict
    score_threshold: float


class KDEOV:
    """A student with its words: images and texts to vectors, classes and boxes.

    An image is a path; a PIL image; a numpy array (H, W, 3) or (H, W), uint8 RGB as
    PIL's; or a tensor (3, H, W), RGB, uint8 or floats in [0, 1], not normalised.
    Methods take one image, a list of them (of any kinds and sizes), or a batch
    (B, 3, H, W) or (B, H, W, 3), and answer in the order of the images. Images keep
    their proportions and are padded by the model's own preprocessor, each as if alone,
    so a batch says the same as its images one by one. A call leaves the model as it
    is: threads can ask different words at the same time.

    >>> from mmengine.logging import MMLogger
    >>> _ = MMLogger.get_instance("quiet", log_level="ERROR")
    >>> student = KDEOV.from_config("configs/kdeov/kdeov_n_shapes_joint.py")
    >>> image = np.zeros((60, 80, 3), np.uint8)
    >>> student.encode_image([image, image]).shape
    torch.Size([2, 128])
    >>> student.zero_shot_classify(image, ["red ring", ("blue star", "star")]).shape
    torch.Size([1, 2])
    >>> (found,) = student.open_vocabulary_detect(image, ["red ring", "blue star"])
    >>> sorted(found)
    ['boxes', 'labels', 'names', 'scores']

    Args:
        model: :class:`KDEOVDetector`, :class:`ViLDDetector`,
            :class:`ImageTextModel` or :class:`SegStudent`, with its config as
            ``model.cfg``; see :meth:`from_config` and :meth:`from_checkpoint`.
        batch_size: images that pass the model at once.
    """

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        if not isinstance(model, BaseModel) or getattr(model, "cfg", None) is None:
            raise ValueError(
                "expected a student of kdeov_mm with its config as model.cfg, got a "
                f"{type(model).__name__}: KDEOV.from_checkpoint builds one"
            )
        self.model = model.eval()
        self.batch_size = whole_number("batch_size", batch_size)
        self.scale = input_scale(model.cfg)

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
        return cls(load_model(config, checkpoint, device))

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, device: str = "cpu") -> "KDEOV":
        """Build from a checkpoint of ``tools/train.py`` alone, which holds its config.

        The config is read as data and not run, and a CLIP whose weights it names by a
        tag is not downloaded. A ``.pth`` of YOLO-World's authors serves, too: its
        weights say which size it is, and it brings its text tower
        (:mod:`kdeov_mm.yolo_world`).

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is damaged, holds no config, one that cannot be read, or one
                that names other parts than those of mm packages and this one.
        """
        content = read_checkpoint(checkpoint)
        if is_yolo_world(state := state_of(content)):
            own = Config(config_with_words(state))
            return cls(load_model(own, checkpoint, device))
        config = own_config(content, checkpoint)
        try:
            student = cls(load_model(config, checkpoint, device))
        # of a config of ours the traceback would help its author; this one is a file
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"{checkpoint} holds a config that builds no model: {error}"
            ) from error
        for clip in (student.model.text_encoder, student.model.teacher):
            if clip is not None:
                clip.source = dataclasses.replace(clip.source, fetch=False)
        return student

    @property
    def size(self) -> int:
        """The longer side of the inputs in pixels; one that is set is of both sides."""
        return self.scale[0]

    @size.setter
    def size(self, side: int) -> None:
        side = whole_number("size", side, most=MAX_SIDE)
        self.scale = (side, side)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides in pixels, of which :meth:`encode_image` takes the nearest."""
        head = self.model.global_head
        crops = head.crop_sizes if head is not None and head.crops else ()
        return tuple(sorted({*crops, self.size}))

    # ----------------------------------------------------------- whole images

    @torch.no_grad()
    def encode_image(self, images: AnyImage | Sequence[AnyImage]) -> Tensor:
        """Images to unit vectors (B, D), in the space of :meth:`encode_text`.

        An image's longer side is resized to the nearest of :attr:`sizes`: those at
        which the model has learnt crops and whole images.

        Raises:
            ValueError: the model has no global head, or an image is none.
            OSError: a file that cannot be read.
        """
        head = self.model.global_head
        if head is None:
            raise ValueError(
                "this model has no global head, and no embeddings of images: train one "
                "with it, e.g. configs/kdeov/kdeov_n_shapes_joint.py."
            )

        def embed(inputs: Tensor, samples: SampleList) -> list[Tensor]:
            return [*self.model(inputs, samples, mode="tensor")["visual_features"]]

        # each image at the size that is nearest to its own
        arrays = _as_arrays(images)
        sides = [min(self.sizes, key=lambda n: abs(n - max(a.shape))) for a in arrays]
        embeds = self._in_batches(arrays, sides, embed)
        if not embeds:
            device = next(self.model.parameters()).device
            return torch.zeros(0, head.projection.embed_dims, device=device)
        answer = torch.stack(embeds)
        if not answer.isfinite().all():
            raise ValueError(
                "the model gives no finite numbers: its weights are damaged"
            )
        return answer

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
        self, images: AnyImage | Sequence[AnyImage], names: Asked
    ) -> Tensor:
        """Logits (B, K) of K classes; their softmax is a distribution over them.

        Args:
            images: see the class.
            names: K words, with the templates of the model's text encoder; a tuple of
                words are synonyms.

        Raises:
            ValueError: the model has no global head, or an image is none.
        """
        embeds = self.encode_image(images)  # (B, D)
        text = self.model.embed(check_names(names))
        return self.model.global_head.logits(embeds, text)

    # -------------------------------------------------------------- detection

    def open_vocabulary_detect(
        self,
        images: AnyImage | Sequence[AnyImage],
        names: Asked | None = None,
        score_threshold: float = 0.2,
        nms_threshold: float = 0.5,
        *,
        agnostic: bool = False,
        class_names: Asked | None = None,
    ) -> list[dict[str, Any]]:
        """Find words in images.

        Args:
            images: see the class.
            names: K words; a tuple of words are synonyms.
            score_threshold: boxes below are left out, in [0, 1].
            nms_threshold: of boxes of a class that overlap more (IoU), the best stays.
                Where a ``test_cfg`` has ``nms=None`` (peaks of the scores) nothing is
                suppressed, unless ``agnostic`` is asked for.
            agnostic: of boxes of all classes: an object gets its best word alone.
            class_names: another name of ``names``, the original KDEOV's.

        Returns:
            Of each image ``boxes`` (n, 4), xyxy in its pixels, ``scores`` (n,),
            ``labels`` (n,), that index the names, and ``names``, n strings; best first.

        Raises:
            ValueError: the model has no detection head, thresholds outside [0, 1], no
                words, or an image is none.
        """
        asked = class_names if names is None else names
        query = self.query(asked, score_threshold, nms_threshold, agnostic)
        return as_dicts(self.predict(_as_arrays(images), query))

    @torch.no_grad()
    def query(
        self,
        names: Asked | None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        agnostic: bool = False,
    ) -> Query:
        """Embed words, and check all that :meth:`predict` is asked.

        Args:
            names: K words; None: those of a :class:`FoldedDetector`.
            score_threshold: boxes below are left out; None: ``test_cfg``'s.
            nms_threshold: IoU, within a class; None: ``test_cfg``'s.
            agnostic: within all classes together; False: as ``test_cfg`` says.

        Raises:
            ValueError: the model has no detection head, thresholds outside [0, 1], no
                words, or vectors of another CLIP.
        """
        self.check_detects()
        # thresholds go into a copy: the model's own belong to all calls
        cfg = copy.deepcopy(self.model.box_cfg)
        if score_threshold is not None:
            cfg.score_thr = _fraction("score_threshold", score_threshold)
        if nms_threshold is not None:
            nms_threshold = _fraction("nms_threshold", nms_threshold)
        set_suppression(cfg, nms_threshold, agnostic)
        # a folded detector knows its words, and has no text encoder
        if isinstance(self.model, FoldedDetector):
            words = self.model.words if names is None else check_names(names).words
            return Query(words, None, cfg, score_threshold or 0.0)
        vocabulary = check_names(names)
        text = self.model.embed(vocabulary)
        return Query(vocabulary.words, text, cfg, score_threshold or 0.0)

    def check_detects(self) -> None:
        """Refuse a model without a detection head.

        Raises:
            ValueError: it has none.
        """
        if not getattr(self.model, "with_bbox", False):
            raise ValueError(
                f"a {type(self.model).__name__} finds no boxes: use the checkpoint of "
                "a KDEOVDetector or a ViLDDetector."
            )

    @torch.no_grad()
    def predict(
        self, images: Sequence[np.ndarray], query: Query
    ) -> list[DetDataSample]:
        """The detector's ``predict`` of images of any sizes.

        Args:
            images: (H, W, 3) uint8 RGB.
            query: of :meth:`query`.

        Returns:
            A sample of each image, with ``words``; its ``pred_instances`` has
            ``bboxes`` (n, 4), xyxy in pixels of the image, ``scores`` (n,), ``labels``
            (n,) and ``label_names``, best first.
        """

        def find(inputs: Tensor, samples: SampleList) -> SampleList:
            return self.predict_inputs(inputs, samples, query)

        return self._in_batches(images, [self.scale] * len(images), find)

    @torch.no_grad()
    def predict_inputs(
        self, inputs: Tensor, samples: SampleList, query: Query
    ) -> SampleList:
        """As :meth:`predict`, of inputs that are prepared already.

        Args:
            inputs: (B, 3, H, W), normalised and padded.
            samples: B samples.
            query: of :meth:`query`.
        """
        for sample in samples:
            sample.set_metainfo(dict(words=query.words))
        results = self.model.predict(inputs, samples, text=query.text, cfg=query.cfg)
        for sample in results:
            # the model compares logits, and the sigmoid of the least one may round down
            found = sample.pred_instances
            sample.pred_instances = found[found.scores >= query.score_threshold]
        return results

    # ----------------------------------------------------------- segmentation

    @torch.no_grad()
    def segment(
        self,
        images: AnyImage | Sequence[AnyImage],
        names: Asked,
        threshold: float = 0.0,
        *,
        scores: bool = False,
        size: int | None = None,
        window: int | None = None,
    ) -> list[dict[str, Any]]:
        """Which word each pixel is of.

        Args:
            images: see the class.
            names: K words; a tuple of words are synonyms.
            threshold: pixels whose share is below are of no word, in [0, 1].
            scores: give the shares of all words, too; (K, H, W) floats of an image.
            size: pixels that the longer side is resized to; None: as in the tests.
            window: side in pixels of windows, which overlap by a third and are seen one
                by one, for images of a large ``size``; None: that of the config, or the
                whole image.

        Returns:
            Of each image ``labels`` (H, W), the number of the word of each of its
            pixels, or -1 for none; ``confidence`` (H, W), its share among words and
            background, in [0, 1]; ``names``, the words that are there, by size; with
            ``scores`` the shares ``scores`` (K, H, W).

        Raises:
            ValueError: the model does not segment, a threshold outside [0, 1], no
                words, or an image is none.
        """
        self.check_segments()
        least = _fraction("threshold", threshold)
        size = None if size is None else whole_number("size", size, most=MAX_SIDE)
        window = None if window is None else whole_number("window", window)
        vocabulary = check_names(names)
        device = next(self.model.parameters()).device
        text = self.model.embed_words(vocabulary, device)
        cfg = dict(self.model.test_cfg, scores=scores)
        if window is not None:
            # in steps of the coarsest map, and a third of them overlaps
            step = self.model.data_preprocessor.pad_size_divisor
            side = -(-window // step) * step
            cfg.update(window=side, stride=max(side * 2 // 3 // step, 1) * step)

        def ask(inputs: Tensor, samples: SampleList) -> SampleList:
            for sample in samples:
                sample.set_metainfo(dict(words=vocabulary.words))
            return self.model.predict(inputs, samples, text, cfg)

        arrays = _as_arrays(images)
        scale = self.scale if size is None else (size, size)
        found = [
            s.pred_sem_seg for s in self._in_batches(arrays, [scale] * len(arrays), ask)
        ]
        return [as_segments(f, vocabulary.words, least, scores) for f in found]

    def check_segments(self) -> None:
        """Refuse a model that gives no masks.

        Raises:
            ValueError: it does not.
        """
        if not isinstance(self.model, SegStudent):
            raise ValueError(
                f"a {type(self.model).__name__} gives no masks: use a checkpoint of "
                "configs/seg, e.g. of seg_shapes.py."
            )

    # ---------------------------------------------------------------- helpers

    def _in_batches(
        self,
        images: Sequence[np.ndarray],
        sides: Sequence[int | tuple[int, int]],
        ask: Callable[[Tensor, SampleList], Sequence[T]],
    ) -> list[T]:
        """What the model answers for each image, (H, W, 3) RGB.

        Args:
            images: of any sizes.
            sides: pixels that their longer sides are resized to; or the most of the
                longer and of the shorter side.
            ask: inputs (B, 3, h, w) and B samples -> B answers.
        """
        answers: dict[int, T] = {}  # by the number of the image

        def pass_on(batch: list[tuple[int, Tensor, DetDataSample]]) -> None:
            which, inputs, samples = zip(*batch)
            answers.update(zip(which, ask(torch.cat(inputs), [*samples])))

        # those of one padded shape go together, so each is padded as if alone
        waiting: dict[torch.Size, Any] = defaultdict(list)
        for i, (image, side) in enumerate(zip(images, sides)):
            inputs, sample = self._prepare(image, side)
            waiting[inputs.shape].append((i, inputs, sample))
            # large images fill a batch earlier
            most = min(self.batch_size, max(MAX_PIXELS // inputs[0, 0].numel(), 1))
            if len(waiting[inputs.shape]) >= most:
                pass_on(waiting.pop(inputs.shape))
        # what did not fill a batch
        for batch in waiting.values():
            pass_on(batch)
        return [answers[i] for i in range(len(images))]

    def _prepare(
        self, image: np.ndarray, side: int | tuple[int, int]
    ) -> tuple[Tensor, DetDataSample]:
        """An image (H, W, 3) RGB -> the model's input (1, 3, h, w) and its sample."""
        height, width = image.shape[:2]
        # proportions stay; a thread of an image is one pixel wide at least
        scale = (side, side) if isinstance(side, int) else side
        size = mmcv.rescale_size((width, height), scale)
        small = mmcv.imresize(image, tuple(max(n, 1) for n in size))
        meta = dict(
            ori_shape=(height, width),
            img_shape=small.shape[:2],
            scale_factor=(small.shape[1] / width, small.shape[0] / height),
        )
        # mm's preprocessor takes BGR: (h, w, 3) -> (3, h, w)
        pixels = np.ascontiguousarray(small[..., ::-1].transpose(2, 0, 1))
        data = dict(
            inputs=[torch.from_numpy(pixels)],
            data_samples=[DetDataSample(metainfo=meta)],
        )
        # normalised, and padded at the right and below
        data = self.model.data_preprocessor(data, False)
        return data["inputs"], data["data_samples"][0]


def as_dicts(samples: SampleList) -> list[dict[str, Any]]:
    """Samples with predictions -> the original KDEOV's names of mm's instances."""
    found = [sample.pred_instances for sample in samples]
    return [
        dict(boxes=f.bboxes, scores=f.scores, labels=f.labels, names=f.label_names)
        for f in found
    ]


def as_segments(
    found: PixelData, words: Sequence[Words], threshold: float, scores: bool
) -> dict[str, Any]:
    """What :meth:`KDEOV.segment` says of an image."""
    labels, confidence = found.sem_seg[0], found.confidence[0]
    labels = labels.masked_fill(confidence < threshold, BACKGROUND)
    # the words that are there, the largest first
    areas = labels[labels != BACKGROUND].bincount(minlength=len(words))
    order = areas.argsort(descending=True, stable=True)
    names = [words[i][0] for i in order.tolist() if areas[i]]
    result = dict(labels=labels, confidence=confidence, names=names)
    return dict(result, scores=found.scores) if scores else result


def _fraction(name: str, value: float) -> float:
    return real_number(name, value, 0, 1)


def check_names(names: Any) -> Vocabulary:
    """A list of words, or a vocabulary; a single string is a mistake."""
    if names is None or isinstance(names, str):
        raise ValueError(f"expected a list of words, got {names!r}")
    return as_vocabulary(names)


def input_scale(config: Config) -> tuple[int, int]:
    """The most of the longer and of the shorter side of a config's test inputs."""
    with taken_apart("the config's test pipeline"):
        loader = config.get("test_dataloader") or {}
        dataset = loader.get("dataset") or {}
        # wrappers of data sets have no pipeline of their own
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        scales = [
            step["scale"] for step in dataset.get("pipeline", ()) if "scale" in step
        ]
    if not scales:
        raise ValueError(
            "the config's test pipeline resizes nothing (no step of "
            "test_dataloader.dataset.pipeline has a `scale`): the size of the model's "
            "input is not known."
        )
    # the last step that resizes decides
    scale = scales[-1]
    with taken_apart("the scale of the config's test pipeline"):
        sides = (scale, scale) if isinstance(scale, int) else (max(scale), min(scale))
        # no bound is written as a very large one, or as infinity
        for side in sides:
            real_number("each side", side, 1, float("inf"))
    return sides


def normalisation(preprocessor: Any) -> dict[str, Any]:
    """What a data preprocessor does to pixels in [0, 255]."""
    used = preprocessor._enable_normalize
    return dict(
        channels="RGB" if preprocessor._channel_conversion else "BGR",
        mean=preprocessor.mean.flatten().tolist() if used else [0.0] * 3,
        std=preprocessor.std.flatten().tolist() if used else [1.0] * 3,
        pad_value=preprocessor.pad_value,
    )


def _as_arrays(images: Any) -> list[np.ndarray]:
    """One image, a list, or a batch -> arrays (H, W, 3) uint8 RGB."""
    if isinstance(images, (np.ndarray, Tensor)):
        images = [*images] if images.ndim == 4 else [images]
    elif isinstance(images, (str, Path, Image.Image)):
        images = [images]
    return [as_rgb(image) for image in items_of("images", images)]
