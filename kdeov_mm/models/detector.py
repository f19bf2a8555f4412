"""KDEOVDetector: the one page that tells the story."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from torch import Tensor, nn

from ..vocabulary import Words, merge_synonyms
from .vocabulary import RandomVocabulary, words_of


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
        self.vocabulary = RandomVocabulary(**(vocabulary or {}))
        if synonyms not in ("mean", "max"):
            raise ValueError(f"synonyms is 'mean' or 'max', got {synonyms!r}")
        self.synonyms = synonyms
        self._check_clip()
        # a tenth faster on a CPU, and what half precision wants on a GPU
        self.to(memory_format=torch.channels_last)

    def _check_clip(self) -> None:
        """One CLIP for words, crops and the head's dimension; RGB for its eyes."""
        words = self.text_encoder.source
        head_dims = self.bbox_head.head_module.embed_dims
        clip_dims = self.text_encoder.embed_dims
        if head_dims != clip_dims:
            raise ValueError(
                f"the CLIP of model.text_encoder has {clip_dims} dimensions, "
                f"model.bbox_head.head_module.embed_dims is {head_dims}: set it to "
                f"{clip_dims}."
            )
        if not self.distill:
            return
        if self.teacher is None:
            raise ValueError(
                f"distillation heads {list(self.distill)} need a "
                "`teacher` in the model config"
            )
        if self.teacher.source != words:
            raise ValueError(
                f"the teacher is {self.teacher.source}, but the words are those of "
                f"{words}: give model.teacher and model.text_encoder the same "
                "`model` and `pretrained`."
            )
        if self.teacher.sees_pixels and any(
            "stored" in getattr(head, "sources", ()) for head in self.distill.values()
        ):
            raise ValueError(
                "'stored' boxes come from a store: use model.teacher.type="
                "'CachedTeacher', or take 'stored' out of the heads' `sources`."
            )
        if not self.data_preprocessor._channel_conversion:
            raise ValueError(
                "the teacher sees RGB: distillation needs "
                "data_preprocessor.bgr_to_rgb=True"
            )

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and samples with boxes -> named losses."""
        words, samples = self.vocabulary(batch_data_samples)
        feats, text, _ = self._feats_and_text(batch_inputs, words)
        losses, locations = self.bbox_head.loss_and_locations(feats, text, samples)
        if not self.distill or self.teacher is None:
            return losses
        teacher = self.teacher.for_batch(samples)
        pixels = batch_inputs
        if self.teacher.sees_pixels:
            pixels = self.pixels(batch_inputs, [s.img_shape for s in samples])
        head: Any
        for name, head in self.distill.items():
            terms = head.loss(feats, text, teacher, pixels, samples, locations)
            for key, value in terms.items():  # of two heads of a kind, both count
                losses[f"{key}_{name}" if key in losses else key] = value
        return losses

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
        names = [word if isinstance(word, str) else word[0] for word in words]
        for result in results:
            result.label_names = [names[i] for i in result.labels.tolist()]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple[list[Tensor], ...]:
        """Logits and boxes per level, without post-processing."""
        words = words_of(batch_data_samples)
        return self.bbox_head(self._feats_and_text(batch_inputs, words))

    def _feats_and_text(
        self, images: Tensor, words: Sequence[Words]
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Images (B, 3, H, W) and K classes -> what the head is given.

        Returns:
            P3, P4, P5, fused if asked; vectors (K, D), or of all W synonyms (W, D);
            then also the class of each (W,).
        """
        flat, owner = merge_synonyms(words)
        text = self.text_encoder(flat).to(images.device)
        if owner is not None:
            owner = owner.to(images.device)
            if self.synonyms == "mean":
                total = text.new_zeros(len(words), text.shape[1])
                text = F.normalize(total.index_add(0, owner, text), dim=1)
                owner = None
        feats = self.extract_feat(images)
        return (self.fusion(feats, text) if self.fusion else feats), text, owner

    def pixels(self, batch_inputs: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Undo the student's normalisation, for the teacher.

        Args:
            batch_inputs: (B, 3, H, W), as the student sees them.
            shapes: height and width of each image without its padding.

        Returns:
            (B, 3, H, W), RGB in [0, 1], the padding black.
        """
        preprocessor, pixels = self.data_preprocessor, batch_inputs
        if preprocessor._enable_normalize:
            pixels = pixels * preprocessor.std + preprocessor.mean
        pixels = pixels / 255
        for image, (height, width, *_) in zip(pixels, shapes):
            image[:, height:] = 0
            image[..., width:] = 0
        return pixels
