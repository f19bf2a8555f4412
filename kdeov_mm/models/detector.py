"""KDEOVDetector: the one page that tells the story."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, OptSampleList, SampleList
from torch import Tensor, nn

from ..vocabulary import Vocabulary, Words
from .folded import FoldedDetector, name_labels
from .global_head import GlobalHead, filled_part
from .pixels import (
    check_dims,
    check_teacher,
    crop_to_fit,
    frozen_statistics,
    undo_normalisation,
    untouched,
)
from .postprocess import best_of, is_simple
from .random_vocabulary import RandomVocabulary, embed_words, words_of


@MODELS.register_module()
class KDEOVDetector(SingleStageDetector):
    """A small detector that answers in CLIP's language.

    images -> backbone -> neck -> [fusion with the words] -> head: boxes, and
    scores by embedding . text. The words come with the samples (``text`` in
    their metainfo); training, unseen words and a user's prompt differ only in
    who supplies them. In training, distillation heads call the teacher on the
    same pixels; without them a working detector is left.

    Args:
        backbone: e.g. ``mmyolo.YOLOv8CSPDarknet``.
        neck: e.g. ``mmyolo.YOLOv8PAFPN``.
        bbox_head: :class:`OVHead`.
        text_encoder: :class:`kdeov_mm.clip.CLIPTextEncoder`.
        fusion: a module of ``fusion.py``; None for none.
        teacher: :class:`kdeov_mm.clip.CLIPImageTeacher`; needed by ``distill``.
        distill: name -> distillation head.
        global_head: :class:`GlobalHead`: embeddings of whole images; None for none.
        frozen: train the global head alone, on a detector (``load_from``) that stays as
            it is, to the bit.
        vocabulary: arguments of :class:`RandomVocabulary`.
        synonyms: how the synonyms of a class answer for it at test time: the
            ``'mean'`` of their vectors (one vector for a class), or the ``'max'`` of
            their scores.
        train_cfg, test_cfg, data_preprocessor, init_cfg: mmdet's.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        neck: dict[str, Any],
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
        self.text_encoder = MODELS.build(text_encoder)
        self.fusion = MODELS.build(fusion) if fusion else None
        self.teacher = MODELS.build(teacher) if teacher else None
        self.distill = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in (distill or {}).items()}
        )
        self.global_head: GlobalHead | None = (
            MODELS.build(global_head) if global_head else None
        )
        self.vocabulary = RandomVocabulary(**(vocabulary or {}))
        if synonyms not in ("mean", "max"):
            raise ValueError(f"synonyms is 'mean' or 'max', got {synonyms!r}")
        self.synonyms = synonyms
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            if self.global_head is None or not self.global_head.learns or distill:
                raise ValueError(
                    "frozen=True trains the global head alone: give model.global_head "
                    "something to learn, and set model.distill=None."
                )
            self.global_head.requires_grad_(True)
        self._check_clip()
        # a tenth faster on a CPU, and what half precision wants on a GPU
        self.to(memory_format=torch.channels_last)

    @property
    def pupils(self) -> dict[str, Any]:
        """The heads that ask the teacher in training, by name."""
        heads: dict[str, Any] = dict(self.distill.items())
        if self.global_head is not None and self.global_head.learns:
            heads["global_head"] = self.global_head
        return heads

    def _check_clip(self) -> None:
        """One CLIP for words, crops and the head's dimension; RGB for its eyes."""
        head_dims = self.bbox_head.head_module.embed_dims
        clip_dims = self.text_encoder.embed_dims
        if head_dims != clip_dims:
            raise ValueError(
                f"the CLIP of model.text_encoder has {clip_dims} dimensions, "
                f"model.bbox_head.head_module.embed_dims is {head_dims}: set it to "
                f"{clip_dims}."
            )
        if self.global_head is not None:
            check_dims(self.global_head, clip_dims)
        if self.pupils:
            check_teacher(self, self.pupils)

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and samples with boxes -> named losses."""
        words, samples = self.vocabulary(batch_data_samples)
        with untouched(self) if self.frozen else nullcontext():
            plain = self.extract_feat(batch_inputs)
            feats, text, _ = self._with_words(plain, words)
            losses, locations = self.bbox_head.loss_and_locations(feats, text, samples)
        if self.frozen:
            losses = {}
        if not self.pupils or self.teacher is None:
            return losses
        teacher = self.teacher.for_batch(samples)
        pixels = batch_inputs
        if self.teacher.sees_pixels:
            shapes = [s.img_shape for s in samples]
            pixels = undo_normalisation(self.data_preprocessor, batch_inputs, shapes)
        seen = (text, teacher, pixels, samples, locations)
        crops = partial(self._see_crops, batch_inputs)
        for name, head in self.pupils.items():
            own = name == "global_head"
            terms = head.loss(plain, *seen, crops) if own else head.loss(feats, *seen)
            for key, value in terms.items():  # of two heads of a kind, both count
                losses[f"{key}_{name}" if key in losses else key] = value
        return losses

    def _see_crops(
        self, images: Tensor, boxes: Sequence[Tensor], side: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Boxes (n_b, 4) of each image, as images of a side -> P3, P4, P5.

        And the part of each that is no padding, (sum n_b, 2). The statistics of the
        norms stay those of whole images: both are told apart by nothing at test time.
        """
        crops, filled = crop_to_fit(images, boxes, side)
        with untouched(self) if self.frozen else frozen_statistics(self):
            return self.extract_feat(crops), filled

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with boxes, scores and names."""
        words = words_of(batch_data_samples)
        results = self.bbox_head.predict(
            self._feats_and_text(batch_inputs, words),
            batch_data_samples,
            rescale=rescale,
        )
        name_labels(results, words)
        return self.add_pred_to_datasample(batch_data_samples, results)

    @torch.no_grad()
    def fold(
        self,
        vocabulary: Sequence[Words] | Vocabulary,
        fuse: bool = True,
        places: int | None = None,
        into: FoldedDetector | None = None,
    ) -> FoldedDetector:
        """The plain detector of a vocabulary: no text tower, no text product.

        Projection, norm, temperature, words and FiLM become convolutions. With
        BatchNorm (no L2 norm) and no fusion, the state is the one of mmyolo's YOLOv8
        with K classes. GroupNorm or the L2 norm, and cross-attention, depend on the
        image and stay as they are, with the words fixed.

        Args:
            vocabulary: K words; a tuple of words are synonyms.
            fuse: fold BatchNorms into the convolutions before them.
            places: score the words only at this many promising places of an image,
                for very large vocabularies (:class:`PromisingPlaces`: not exact; 1000
                keep 0.99 of the best boxes); None scores them at all.
            into: a detector that this one was folded to: its words are changed, in
                milliseconds, and it is returned. Its ``fuse`` stays.

        Raises:
            ValueError: no words, ``places`` below 1 or with a ``test_cfg`` of another
                suppression, or ``into`` is another's.
        """
        if isinstance(vocabulary, Vocabulary):
            if vocabulary.vectors:
                self.text_encoder.take(vocabulary)
            vocabulary = vocabulary.text
        if isinstance(vocabulary, str) or not len(vocabulary):
            raise ValueError(f"expected a list of words, got {vocabulary!r}")
        if places is not None and not is_simple(self.bbox_head.test_cfg):
            raise ValueError(
                "places needs a test_cfg with multi_label=True, plain nms and "
                f"max_per_img, got {dict(self.bbox_head.test_cfg)}"
            )
        vocabulary = [w if isinstance(w, str) else tuple(w) for w in vocabulary]
        device = self.bbox_head.head_module.bias.device
        text, owner = embed_words(self.text_encoder, vocabulary, device, self.synonyms)
        if into is None:
            into = FoldedDetector(self, fuse)
        elif into.source() is not self:
            raise ValueError("`into` was folded from another detector: fold this one.")
        fusion = self.fusion.fixed(text) if self.fusion else None
        was_training = self.bbox_head.training
        ends = self.bbox_head.eval().head_module.ends(text)
        self.bbox_head.train(was_training)
        into.set_words(vocabulary, ends, owner, fusion, places)
        return into

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> dict[str, Any]:
        """All that the student says of images, without post-processing.

        Args:
            batch_inputs: (B, 3, H, W).
            batch_data_samples: B samples with the same K words as ``text`` (and W
                synonyms among them, K where there are none); without: no words.

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
        said: dict[str, Any] = dict.fromkeys(
            ("visual_features", "text_features", "logits", "fused_map", "predictions")
        )
        said["visual_map"] = feats = self.extract_feat(batch_inputs)
        if self.global_head is not None:
            samples = batch_data_samples or [DetDataSample()] * len(batch_inputs)
            filled = filled_part(samples).to(batch_inputs.device)
            said["visual_features"] = self.global_head.embed(feats, filled)
        if batch_data_samples and "text" in batch_data_samples[0]:
            fused, text, owner = self._with_words(feats, words_of(batch_data_samples))
            said["text_features"] = text
            said["fused_map"] = fused if self.fusion else None
            said["predictions"] = self.bbox_head((fused, text, owner))
            if self.global_head is not None:
                logits = self.global_head.logits(said["visual_features"], text)
                said["logits"] = logits if owner is None else best_of(logits, owner)
        return said

    def _feats_and_text(
        self, images: Tensor, words: Sequence[Words]
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Images (B, 3, H, W) and K classes -> what the head is given."""
        return self._with_words(self.extract_feat(images), words)

    def _with_words(
        self, feats: tuple[Tensor, ...], words: Sequence[Words]
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Feature maps and K classes -> what the head is given.

        Returns:
            P3, P4, P5, fused if asked; vectors (K, D), or of all W synonyms (W, D);
            then also the class of each (W,).
        """
        device = feats[0].device
        text, owner = embed_words(self.text_encoder, words, device, self.synonyms)
        return (self.fusion(feats, text) if self.fusion else feats), text, owner
