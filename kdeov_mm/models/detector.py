"""KDEOVDetector: the one-stage student, from images and words to boxes and losses."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, OptSampleList, SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from ..vocabulary import Asked, Words, as_vocabulary
from ..yolo_world import read_yolo_world
from .distill.base import Distillation, RegionEmbeds, StudentBatch
from .distill.image import ImageDistillation
from .folded import FoldedDetector
from .global_head import GlobalHead
from .ov_head_module import HeadInput
from .pixels import as_weights, crop_to_fit, filled_part, frozen_statistics, untouched
from .postprocess import is_simple
from .random_vocabulary import RandomVocabulary
from .static import StaticForm
from .student import BoxQuery, Student, check_dims, training_progress, words_of
from .text_classifier import TextEmbeds


@MODELS.register_module()
class KDEOVDetector(Student, SingleStageDetector):
    """A small detector whose locations have embeddings in CLIP's space.

    images -> backbone -> neck -> [fusion with the words] -> head: boxes, and
    scores by embedding . text. The classes come with the samples (``words`` in
    their metainfo); training, unseen words and a user's prompt differ only in
    who supplies them. In training, distillation heads compare the student with the
    teacher on the same images; without them it is a plain detector.

    Args:
        backbone: e.g. ``mmyolo.YOLOv8CSPDarknet``.
        neck: e.g. ``mmyolo.YOLOv8PAFPN``; None where the fusion is one
            (:class:`TextPAFPN`).
        bbox_head: :class:`OVHead`.
        text_encoder: :class:`kdeov_mm.clip.CLIPTextEncoder`.
        fusion: a module of ``fusion.py``; None for none.
        teacher: :class:`kdeov_mm.clip.CLIPImageTeacher`; needed by ``distill``.
        distill: name -> distillation head.
        global_head: :class:`GlobalHead`: embeddings of whole images; None for none.
        frozen: train the global head alone; the detector (``load_from``) does not
            change.
        vocabulary: arguments of :class:`RandomVocabulary`.
        synonyms: how the synonyms of a class stand for it at test time: the
            ``'mean'`` of their vectors (one vector for a class), or the ``'max'`` of
            their scores.
        train_cfg, test_cfg, data_preprocessor, init_cfg: mmdet's.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any] | None,
        bbox_head: dict[str, Any],
        text_encoder: dict[str, Any],
        fusion: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        distill: dict[str, dict[str, Any]] | None = None,
        global_head: dict[str, Any] | None = None,
        frozen: bool = False,
        vocabulary: dict[str, Any] | None = None,
        synonyms: str = "mean",
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            backbone, neck, bbox_head, train_cfg, test_cfg, data_preprocessor, init_cfg
        )
        # mmdet leaves out what there is none of
        if neck is None:
            self.neck = None
        # words, teacher and what learns from it
        self.text_encoder = MODELS.build(text_encoder)
        self.fusion = MODELS.build(fusion) if fusion else None
        self.build_teaching(teacher, distill)
        self.global_head: GlobalHead | None = (
            MODELS.build(global_head) if global_head else None
        )
        self.vocabulary = RandomVocabulary(**(vocabulary or {}))
        self.set_synonyms(synonyms)
        self.static: StaticForm | None = StaticForm()
        # only the global head learns: gradients stop here, statistics in `untouched`
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            if self.global_head is None or not self.global_head.learns or distill:
                raise ValueError(
                    "frozen=True trains the global head alone: give model.global_head "
                    "something to learn, and set model.distill=None."
                )
            self.global_head.requires_grad_(True)
        self._freeze_idle_parts()
        self.check_clip()
        self._register_load_state_dict_pre_hook(read_yolo_world, with_module=True)
        # a tenth faster on a CPU, and needed by half precision on a GPU
        self.to(memory_format=torch.channels_last)

    @property
    def distill_heads(self) -> dict[str, Distillation]:
        """The modules that learn from the teacher, by name."""
        heads: dict[str, Any] = dict(self.distill.items())
        if self.global_head is not None and self.global_head.learns:
            heads["global_head"] = self.global_head
        return heads

    @property
    def box_cfg(self) -> Any:
        """The part of ``test_cfg`` that says which boxes are kept."""
        return self.bbox_head.test_cfg

    def _freeze_idle_parts(self) -> None:
        # distributed training waits for ever for a parameter without a gradient. Of an
        # unsupervised detector, heads of whole images teach no location, and a global
        # head alone no fusion
        heads = [*self.distill_heads.values()]
        if self.bbox_head.supervised:
            return
        if all(isinstance(head, ImageDistillation) for head in heads):
            self.bbox_head.requires_grad_(False)
        if self.fusion and all(isinstance(head, GlobalHead) for head in heads):
            self.fusion.requires_grad_(False)

    def check_clip(self) -> None:
        """As the parent's, and the dimensions of the detection head."""
        module = self.bbox_head.head_module
        check_dims("bbox_head.head_module", module, self.text_encoder.embed_dims)
        super().check_clip()

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and samples with boxes -> named losses.

        Raises:
            ValueError: samples without words, or nothing to learn.
        """
        # the words of this step, and labels that index them
        words, samples = self.vocabulary(batch_data_samples)
        text = self.embed(words, batch_inputs.device)
        # maps before and after fusion, locations
        with untouched(self) if self.frozen else nullcontext():
            plain = self.extract_feat(batch_inputs)
            feats = self.fused(plain, text)
            located = self.bbox_head.embed(feats)
        # distillation, which also finds objects that nobody labelled; then detection
        student = StudentBatch(
            feats,
            samples,
            text.vectors,
            located.regions,
            plain,
            partial(self._crop_features, batch_inputs),
            training_progress(),
        )
        taught = self.taught(student, batch_inputs)
        losses = {}
        if not self.frozen:
            losses = self.bbox_head.losses(located, text.vectors, samples)
        losses.update(taught)
        if not losses:
            raise ValueError(
                "nothing to learn: bbox_head.supervised=False needs model.teacher, and "
                "heads in model.distill with `distances`."
            )
        return losses

    def train(self, mode: bool = True) -> "KDEOVDetector":
        """As PyTorch's; a training needs the memory of the graphs of its validation."""
        if mode and self.static:
            self.static.drop()
        return super().train(mode)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> P3, P4, P5, in the precision of the weights."""
        return super().extract_feat(as_weights(self.backbone, batch_inputs))

    def _crop_features(
        self, images: Tensor, boxes: Sequence[Tensor], side: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Boxes (n_b, 4) of each image, as images of a side -> P3, P4, P5.

        And the part of each that is no padding, (sum n_b, 2). The statistics of the
        norms remain those of whole images, as at test time.
        """
        crops, filled = crop_to_fit(images, boxes, side)
        with untouched(self) if self.frozen else frozen_statistics(self):
            return self.extract_feat(crops), filled

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
        text: TextEmbeds | None = None,
        cfg: Any = None,
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with boxes, scores and names.

        Samples with ``gt_label``, or with ``captions`` and no words, are of data sets
        of whole images: the global head embeds and classifies them
        (:meth:`Student.predict_images`). Arguments are those of
        :meth:`Student.predict_boxes`.
        """
        if any(map(_is_whole, batch_data_samples)):
            return self.predict_images(batch_inputs, batch_data_samples)
        return self.predict_boxes(batch_inputs, batch_data_samples, rescale, text, cfg)

    def find_boxes(
        self, images: Tensor, samples: SampleList, query: BoxQuery
    ) -> list[InstanceData]:
        """Boxes of images (n, 3, H, W) of one padded shape."""
        words, text, cfg, rescale = query

        def ask(images: Tensor, samples: SampleList) -> list[InstanceData]:
            x = self.head_input(images, words, text)
            return self.bbox_head.predict(x, samples, rescale=rescale, cfg=cfg)

        def fixed(images: Tensor, *vectors_and_owner: Tensor) -> Tensor:
            x = self.head_input(images, words, TextEmbeds(*vectors_and_owner))
            return self.bbox_head.fixed(x, len(words), cfg)

        if self.static is None or not self.static.suits(self, images, cfg):
            return ask(images, samples)
        given = [images, *(each for each in text or () if each is not None)]
        return self.static.find(self, fixed, given, samples, query, ask)

    @torch.no_grad()
    def fold(
        self,
        vocabulary: Asked,
        fuse: bool = True,
        candidates: int | None = None,
        into: FoldedDetector | None = None,
    ) -> FoldedDetector:
        """The plain detector of a vocabulary: no text encoder, no text product.

        Projection, norm, temperature, words and FiLM become convolutions. With
        BatchNorm (no L2 norm) and no fusion, the state is the one of mmyolo's YOLOv8
        with K classes. With GroupNorm or the L2 norm the last one is computed for each
        image (:class:`FoldedLevel`); cross-attention stays, with the words fixed.

        Args:
            vocabulary: K classes, see :func:`kdeov_mm.vocabulary.as_vocabulary`.
            fuse: fold BatchNorms into the convolutions before them.
            candidates: score the words only at this many locations of an image, for
                very large vocabularies (:class:`CandidateLocations`: not exact; 1000
                keep 0.99 of the best boxes); None scores them everywhere.
            into: a detector that this one was folded to: its words are changed, in
                milliseconds, and it is returned. Its ``fuse`` stays.

        Raises:
            ValueError: no words, ``candidates`` below 1 or with a ``test_cfg`` of
                another suppression, or ``into`` is another's.
        """
        classes = as_vocabulary(vocabulary)
        if candidates is not None and not is_simple(self.bbox_head.test_cfg):
            raise ValueError(
                "candidates needs a test_cfg with multi_label=True, plain nms and "
                f"max_per_img, got {dict(self.bbox_head.test_cfg)}"
            )
        # a new copy of the detector, or an earlier one with other words
        if into is None:
            into = FoldedDetector(self, fuse)
        elif into.source() is not self:
            raise ValueError("`into` was folded from another detector: fold this one.")
        # the final layers as at test time
        vectors, owner = self.embed(classes)
        fusion = self.fusion.fixed(vectors) if self.fusion else None
        was_training = self.bbox_head.training
        layers = self.bbox_head.eval().head_module.final_layers(vectors)
        self.bbox_head.train(was_training)
        into.set_words(classes.words, layers, owner, fusion, candidates)
        return into

    def _forward(
        self,
        batch_inputs: Tensor,
        batch_data_samples: OptSampleList = None,
        text: TextEmbeds | None = None,
    ) -> dict[str, Any]:
        """All outputs of the student for images, without post-processing.

        Of the whole batch with its padding, so near the border of a smaller image they
        depend on how much follows; :meth:`predict` does not.

        Args:
            batch_inputs: (B, 3, H, W).
            batch_data_samples: B samples with the same K classes as ``words`` (and W
                synonyms among them, K where there are none); without: no words.
            text: embeddings instead of those of the samples' words.

        Returns:
            ``visual_features``: (B, D) unit vectors of the global head;
            ``text_features``: (K, D) unit vectors (W, D with ``synonyms='max'``);
            ``logits``: (B, K) cosines of both, times the head's temperature;
            ``visual_map``: P3, P4, P5, each (B, C_l, H_l, W_l);
            ``fused_map``: the same after fusion with the words;
            ``predictions``: logits (B, K, H_l, W_l) and box sides (B, 4, H_l, W_l),
            in strides, per level; in training also box logits.
            None stands for what the model has no part for, or no words.
        """
        # what the model has no part for stays None
        keys = ("visual_features", "text_features", "logits", "fused_map")
        outputs: dict[str, Any] = dict.fromkeys((*keys, "predictions"))
        outputs["visual_map"] = feats = self.extract_feat(batch_inputs)
        # the global path does not need words
        if self.global_head is not None:
            samples = batch_data_samples or [DetDataSample()] * len(batch_inputs)
            filled = filled_part(samples).to(batch_inputs.device)
            outputs["visual_features"] = self.global_head.embed(feats, filled)
        # the detection path, and scores of whole images
        if text is None and batch_data_samples and "words" in batch_data_samples[0]:
            text = self.embed(words_of(batch_data_samples), batch_inputs.device)
        if text is not None:
            fused = self.fused(feats, text)
            outputs["text_features"] = text.vectors
            outputs["fused_map"] = fused if self.fusion else None
            outputs["predictions"] = self.bbox_head(HeadInput(fused, text))
            if self.global_head is not None:
                embeds = outputs["visual_features"]
                outputs["logits"] = self.global_head.logits(embeds, text)
        return outputs

    def head_input(
        self, images: Tensor, words: Sequence[Words], text: TextEmbeds | None = None
    ) -> HeadInput:
        """Images (B, 3, H, W) and K classes -> what the head is given.

        Args:
            images: normalised and padded.
            words: the classes.
            text: their embeddings; None embeds them.
        """
        text = self.embed(words, images.device) if text is None else text
        return HeadInput(self.fused(self.extract_feat(images), text), text)

    def rate_regions(self, images: Tensor, samples: SampleList) -> RegionEmbeds:
        """Locations of images (B, 3, H, W), for a :class:`RegionPicker`; in training
        mode, where they are rated."""
        feats, _ = self.head_input(images, words_of(samples))
        return self.bbox_head.embed(feats).regions

    def fused(self, feats: tuple[Tensor, ...], text: TextEmbeds) -> tuple[Tensor, ...]:
        """P3, P4, P5, fused with the words if the model has a fusion."""
        return self.fusion(feats, text.vectors) if self.fusion else feats


def _is_whole(sample: DetDataSample) -> bool:
    """Whether a sample asks about its whole image: to classify or to retrieve it."""
    return "gt_label" in sample or ("captions" in sample and "words" not in sample)
