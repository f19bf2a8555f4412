"""What all students share: words to vectors, the teacher, and checks of both."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..vocabulary import Vocabulary, Words, refuse_equal
from .distill.base import Distillation, StudentBatch
from .pixels import as_if_alone, filled_part
from .postprocess import describe
from .pretrained import load_pretrained, take_pretrained
from .text_classifier import TextEmbeds


class BoxQuery(NamedTuple):
    """What a detector is asked.

    Attributes:
        words: K classes.
        text: their embeddings; None where they are folded in.
        cfg: the ``test_cfg`` that says which boxes are kept.
        rescale: boxes in pixels of the original images.
    """

    words: tuple[Words, ...]
    text: TextEmbeds | None
    cfg: Any
    rescale: bool


class Student:
    """Mixed into mmengine models that are taught by a CLIP.

    The ``init_cfg`` of backbone and neck may name a file of weights,
    ``dict(type="Pretrained", checkpoint=FILE_OR_ADDRESS, prefix=None)``: it has to
    have all of their weights, see :func:`kdeov_mm.models.pretrained.load_pretrained`.

    Attributes:
        backbone, neck: to feature maps; the neck may be None.
        text_encoder: :class:`kdeov_mm.clip.CLIPTextEncoder`.
        teacher: :class:`kdeov_mm.clip.CLIPImageTeacher` or ``CachedTeacher``; None at
            test time, and where nothing is distilled.
        synonyms: how the synonyms of a class stand for it at test time: the
            ``'mean'`` of their vectors, or the ``'max'`` of their scores.
    """

    backbone: Any
    neck: Any
    text_encoder: Any
    teacher: Any
    distill: Any
    data_preprocessor: Any
    global_head: Any
    box_cfg: Any  # the part of ``test_cfg`` that says which boxes are kept
    synonyms: str = "mean"
    cfg: Any = None

    @property
    def distill_heads(self) -> dict[str, Distillation]:
        """The modules that learn from the teacher, by name."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """As mmengine's, and then the weights of the files that are named.

        Raises:
            FileNotFoundError: such a file is not there.
            OSError: it cannot be downloaded.
            ValueError: it does not have all of the weights, with their shapes.
        """
        # mmengine loads what fits and says nothing of the rest
        parts = dict(backbone=self.backbone, neck=self.neck)
        files = {name: take_pretrained(part) for name, part in parts.items()}
        super().init_weights()  # type: ignore[misc]
        # last, so that nothing initialises them again
        for name, init_cfgs in files.items():
            for init_cfg in init_cfgs:
                load_pretrained(parts[name], name, init_cfg)

    def embed(
        self,
        classes: Vocabulary | Sequence[Words],
        device: torch.device | str | None = None,
    ) -> TextEmbeds:
        """Embed K classes; the vectors that a vocabulary has are used.

        Args:
            classes: a vocabulary, or a tuple of words for each class.
            device: of the vectors; None: that of the model.

        Raises:
            ValueError: vectors of another CLIP, words that cannot be embedded, or two
                classes that are the same to the CLIP.
        """
        # vectors that came with the vocabulary, or the encoder's
        if isinstance(classes, Vocabulary):
            embedded = classes.embed(self.text_encoder)
            words = embedded.words
            rows = [embedded.vectors[word] for own in words for word in own]
            vectors = torch.stack(rows)
        else:
            words = tuple(classes)
            flat = [word for own in words for word in own]
            vectors = self.text_encoder(flat)
            # words of a training step are drawn: DistinctWordsHook looks at them all
            if not self.training:  # type: ignore[attr-defined]
                refuse_equal(words, dict(zip(flat, vectors)), self.text_encoder)
        if device is None:
            device = next(self.parameters()).device  # type: ignore[attr-defined]
        return merge_synonyms(
            vectors.to(device, non_blocking=True), words, self.synonyms
        )

    def build_teaching(
        self, teacher: dict[str, Any] | None, distill: dict[str, dict[str, Any]] | None
    ) -> None:
        """Build the teacher, and the distillation heads by name."""
        self.teacher = MODELS.build(teacher) if teacher else None
        self.distill = nn.ModuleDict(
            {n: MODELS.build(cfg) for n, cfg in (distill or {}).items() if cfg}
        )

    def set_synonyms(self, synonyms: str) -> None:
        """Choose how the synonyms of a class stand for it, see :class:`Student`.

        Raises:
            ValueError: neither ``'mean'`` nor ``'max'``.
        """
        if synonyms not in ("mean", "max"):
            raise ValueError(f"synonyms is 'mean' or 'max', got {synonyms!r}")
        self.synonyms = synonyms

    def teacher_batch(self, inputs: Tensor, samples: SampleList) -> Any:
        """What the teacher says of the student's inputs (B, 3, H, W)."""
        return self.teacher.for_batch(inputs, samples, self.data_preprocessor)

    def taught(self, student: StudentBatch, inputs: Tensor) -> dict[str, Tensor]:
        """Losses of the heads that compare the student with the teacher.

        Args:
            student: what the student says of the batch.
            inputs: its images (B, 3, H, W).
        """
        losses: dict[str, Tensor] = {}
        if not self.distill_heads or self.teacher is None:
            return losses
        teacher = self.teacher_batch(inputs, student.samples)
        for name, head in self.distill_heads.items():
            for key, value in head.loss(student, teacher).items():
                # of two heads of a kind, both count
                losses[f"{key}_{name}" if key in losses else key] = value
        return losses

    def predict_boxes(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
        text: TextEmbeds | None = None,
        cfg: Any = None,
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with boxes, scores and names.

        Args:
            batch_inputs: normalised and padded.
            batch_data_samples: B samples with the same classes as ``words``.
            rescale: boxes in pixels of the original images.
            text: embeddings of these classes; None embeds the words.
            cfg: instead of :attr:`box_cfg`.
        """
        words = words_of(batch_data_samples)
        text = self.embed(words, batch_inputs.device) if text is None else text
        query = BoxQuery(words, text, self.box_cfg if cfg is None else cfg, rescale)
        # boxes of an image do not depend on its neighbours
        ask = partial(self.find_boxes, query=query)
        results = as_if_alone(batch_inputs, batch_data_samples, ask)
        describe(batch_data_samples, results, words, query.cfg)
        return self.add_pred_to_datasample(  # type: ignore[attr-defined]
            batch_data_samples, results
        )

    def find_boxes(
        self, images: Tensor, samples: SampleList, query: BoxQuery
    ) -> list[InstanceData]:
        """Boxes of images (n, 3, H, W) of one padded shape."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_images(self, inputs: Tensor, samples: SampleList) -> SampleList:
        """Embed and classify whole images; their embeddings do not depend on the batch.

        Args:
            inputs: (B, 3, H, W), normalised and padded.
            samples: B samples.

        Returns:
            The samples. All get ``visual_feature`` (D,); samples with ``words`` get
            ``scores`` (K,), the softmax over the words, and ``ranking`` (K,), the best
            classes in order; samples with ``captions`` get ``caption_features``
            (n, D). Vectors are unit vectors.

        Raises:
            ValueError: there is no global head.
        """
        if self.global_head is None:
            raise ValueError(
                "samples of whole images (with a `gt_label`, or `captions` and no "
                "words) need a model with a `global_head`; else test boxes alone."
            )
        # embeddings of the images, and of captions for retrieval
        embeds = torch.stack(as_if_alone(inputs, samples, self._embed_images))
        for sample, embed in zip(samples, embeds):
            sample.set_data(dict(visual_feature=embed))
            if "captions" in sample:
                features = self.text_encoder.embed_prompts(
                    sample.captions, embed.device
                )
                sample.set_data(dict(caption_features=features))
        # scores and ranking for zero-shot classification
        if all("words" in sample for sample in samples):
            text = self.embed(words_of(samples), embeds.device)
            logits = self.global_head.logits(embeds, text)
            for sample, scores in zip(samples, logits.softmax(1)):
                ranking = scores.argsort(descending=True)
                sample.set_data(dict(scores=scores, ranking=ranking))
        return samples

    def _embed_images(self, inputs: Tensor, samples: SampleList) -> Tensor:
        """Images (B, 3, H, W) -> (B, D) unit vectors."""
        filled = filled_part(samples, inputs.shape[-2:]).to(inputs.device)
        feats = self.extract_feat(inputs)  # type: ignore[attr-defined]
        return self.global_head.embed(feats, filled)

    def check_clip(self) -> None:
        """Compare CLIP, dimensions and channel order of teacher, words and heads.

        Raises:
            ValueError: what does not go together, and what to set.
        """
        # dimensions
        clip_dims = self.text_encoder.embed_dims
        if self.global_head is not None:
            check_dims("global_head.projection", self.global_head.projection, clip_dims)
        # a teacher, where something is distilled
        heads = self.distill_heads
        if not heads:
            return
        if self.teacher is None:
            raise ValueError(
                f"{list(heads)} learn from a teacher: they need a `teacher` in the "
                "model config"
            )
        # one CLIP for both sides
        if self.teacher.source != self.text_encoder.source:
            raise ValueError(
                f"the teacher is {self.teacher.source}, but the words are those of "
                f"{self.text_encoder.source}: give model.teacher and "
                "model.text_encoder the same `model` and `pretrained`."
            )
        # what the heads need, and pixels as the teacher takes them
        self.teacher.check_heads(heads)
        if not self.data_preprocessor._channel_conversion:
            raise ValueError(
                "the teacher needs RGB input: data_preprocessor=dict("
                "type='DetDataPreprocessor', bgr_to_rgb=True, ...)"
            )


def training_progress() -> float:
    """The part of mmengine's training that is done, in [0, 1]; 1 outside of one."""
    hub = MessageHub.get_current_instance()
    done, planned = hub.get_info("iter", 1), hub.get_info("max_iters", 1)
    return min(done / planned, 1.0)


def check_dims(where: str, module: Any, clip_dims: int) -> None:
    """Refuse a module whose embeddings have other dimensions than the CLIP's.

    Raises:
        ValueError: names its place in the config, and what to set.
    """
    if module.embed_dims != clip_dims:
        raise ValueError(
            f"the CLIP of model.text_encoder has {clip_dims} dimensions, "
            f"model.{where}.embed_dims is {module.embed_dims}: set it to {clip_dims}."
        )


def merge_synonyms(
    vectors: Tensor, words: Sequence[Words], synonyms: str
) -> TextEmbeds:
    """Vectors of all words -> text embeddings of the classes.

    Args:
        vectors: (W, D) unit vectors.
        words: K classes, W words together.
        synonyms: ``'mean'`` or ``'max'``, see :class:`Student`.
    """
    if len(vectors) == len(words):
        return TextEmbeds(vectors)
    # the class of each vector
    sizes = torch.tensor([len(own) for own in words])
    owner = torch.arange(len(words)).repeat_interleave(sizes)
    owner = owner.to(vectors.device, non_blocking=True)
    if synonyms == "max":
        return TextEmbeds(vectors, owner)
    # the direction of the mean
    total = vectors.new_zeros(len(words), vectors.shape[1])
    return TextEmbeds(F.normalize(total.index_add(0, owner, vectors), dim=1))


def words_of_sample(sample: DetDataSample) -> tuple[Words, ...]:
    """The classes that a sample is about.

    Raises:
        ValueError: it has none, or they are no tuples of words.
    """
    words = sample.metainfo.get("words")
    if words is None:
        raise ValueError(
            "sample without words: end the pipeline with PackInputs, and use "
            "OVCocoDataset or the LoadWords transform."
        )
    if isinstance(words, str) or any(isinstance(own, str) for own in words):
        raise ValueError(
            "the metainfo entry 'words' has a tuple of words for each class, got "
            f"{words!r:.100}: see kdeov_mm.vocabulary.as_vocabulary(...).words"
        )
    return tuple(map(tuple, words))


def words_of(samples: SampleList | None) -> tuple[Words, ...]:
    """The K classes that all samples of a test batch share.

    Raises:
        ValueError: samples without words, or with different ones.
    """
    # equal tuples are one entry
    words = {words_of_sample(sample) for sample in samples or []}
    if len(words) != 1:
        raise ValueError(
            f"a test batch needs one vocabulary, got {len(words)}; set the metainfo "
            "'words' of every sample to the same classes."
        )
    return words.pop()
