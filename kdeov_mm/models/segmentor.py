"""CLIP to segmentation: a small network whose pixels lie in CLIP's space."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..datasets.segmentation import BACKGROUND, IGNORED
from ..vocabulary import Vocabulary, Words
from .distill.base import Distillation, StudentBatch, joint_total
from .label_maps import (
    FullSize,
    check_windows,
    interpolated,
    label_pixels,
    pixel_regions,
    starts,
)
from .pixels import as_if_alone
from .student import Student, check_dims, training_progress, words_of
from .text_classifier import TextEmbeds


class ProjectedTeacher(NamedTuple):
    """A teacher's answers in the student's dimensions; see :class:`TeacherBatch`.

    Attributes:
        teacher: whose embeddings are projected.
        project: (N, D of the CLIP) -> (N, D).
    """

    teacher: Any
    project: nn.Module

    def _unit(self, embeds: Tensor) -> Tensor:
        with torch.autocast(embeds.device.type, enabled=False):
            return F.normalize(self.project(embeds.float()), dim=-1)

    def images(self) -> Tensor:
        """(B, D), with gradient to the projection."""
        return self._unit(self.teacher.images())

    def crops(self, boxes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """(sum n_b, D)."""
        return self._unit(self.teacher.crops(boxes, scales))

    def dense(self) -> Tensor:
        """(B, D, h, w)."""
        return self._unit(self.teacher.dense().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def captions(self, captions: Sequence[str]) -> Tensor:
        """(B, D)."""
        return self._unit(self.teacher.captions(captions))


@MODELS.register_module()
class SegStudent(Student, BaseModel):
    """CLIP-to-segmentation distillation.

    images -> backbone -> [neck] -> ``proj``: pixel embeddings -> ``seg_head``: scores
    of the words of the samples. In training, cross-entropy of the labelled pixels, and
    the distillation heads of ``distill``: global InfoNCE (:class:`ImageDistillation`
    with a :class:`ContrastiveDistance`), local attention
    (:class:`AttentionDistillation`), dense maps (:class:`DenseDistillation`) and the
    objects that the student sees, labelled or not (:class:`RegionDistillation`).

    Args:
        backbone, neck: any of mm; the neck's first map is the finest.
        proj: config of :class:`PixelProjection`.
        seg_head: :class:`OpenSegHead` or :class:`ClosedSegHead`.
        text_encoder: :class:`kdeov_mm.clip.CLIPTextEncoder`.
        clip_proj: dimension D of the CLIP; a learnt linear layer from there to
            ``proj.embed_dims``, which the teacher's embeddings pass. None: they are
            learnt as they are, as an open head needs it.
        teacher, distill: see :class:`KDEOVDetector`.
        seg_weight: factor of the cross-entropy.
        background_weight: of a pixel of background in its mean, where a pixel of a
            class has 1.
        label_stride: labels are compared at one pixel in so many, each way. At the
            stride of the map no logit is interpolated.
        synonyms: see :class:`Student`.
        test_cfg: ``window`` and ``stride``, in pixels of the input: the side of windows
            that are seen one by one, and how far apart they are; none: the whole.
        data_preprocessor: ``DetDataPreprocessor`` with ``pad_seg=True`` and
            ``seg_pad_value=-2``.
        init_cfg: mmengine's.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        proj: dict[str, Any],
        seg_head: dict[str, Any],
        text_encoder: dict[str, Any],
        neck: dict[str, Any] | None = None,
        clip_proj: int | None = None,
        teacher: dict[str, Any] | None = None,
        distill: dict[str, dict[str, Any]] | None = None,
        seg_weight: float = 1.0,
        background_weight: float = 1.0,
        label_stride: int = 1,
        synonyms: str = "mean",
        train_cfg: Any = None,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        # the student
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else None
        self.proj = MODELS.build(proj)
        self.seg_head = MODELS.build(seg_head)
        # words, teacher and what learns from it
        self.text_encoder = MODELS.build(text_encoder)
        self.build_teaching(teacher, distill)
        self.clip_proj = (
            nn.Linear(clip_proj, self.proj.embed_dims)
            if clip_proj and distill
            else None
        )
        self.global_head = None
        self.set_synonyms(synonyms)
        self.seg_weight = seg_weight
        self.background_weight = background_weight
        self.label_stride = label_stride
        self.test_cfg = dict(test_cfg or {})
        check_windows(self.test_cfg, self.data_preprocessor.pad_size_divisor)
        self.check_clip()
        self.to(memory_format=torch.channels_last)

    @property
    def distill_heads(self) -> dict[str, Distillation]:
        """The modules that learn from the teacher, by name."""
        return dict(self.distill.items())

    def check_clip(self) -> None:
        """As the parent's, and the dimensions of ``proj``; the teacher is live."""
        dims, clip_dims = self.proj.embed_dims, self.text_encoder.embed_dims
        if self.seg_head.embed_dims != dims:
            raise ValueError(
                f"model.seg_head.embed_dims is {self.seg_head.embed_dims}, "
                f"model.proj.embed_dims {dims}: set both to the same."
            )
        # words lie in CLIP's own space
        is_open = self.seg_head.classes is None
        if self.clip_proj is None:
            if is_open or self.distill:
                check_dims("proj", self.proj, clip_dims)
        elif is_open or self.clip_proj.in_features != clip_dims:
            raise ValueError(
                f"model.clip_proj={self.clip_proj.in_features} needs a CLIP of so many "
                f"dimensions (this one has {clip_dims}) and a ClosedSegHead: an "
                "OpenSegHead compares pixels with words; leave clip_proj out."
            )
        super().check_clip()
        self._check_regions()
        if self.distill and not self.teacher.is_live:
            raise ValueError(
                "stored embeddings serve detectors: use the live teacher here, "
                "model.teacher.type='CLIPImageTeacher'."
            )

    def _check_regions(self) -> None:
        """Refuse sources of regions that are always empty here.

        Raises:
            ValueError: names them, and what there is.
        """
        there = {"random", "blocks", *(["own"] if self.seg_head.background else [])}
        for name, head in self.distill_heads.items():
            if nothing := {*head.needs.sources} - there:
                raise ValueError(
                    f"model.distill.{name}.sources: there are no {sorted(nothing)} "
                    "regions. A student of masks has no boxes, and its own objects are "
                    f"what is no background: expected some of {sorted(there)}."
                )

    def teacher_batch(self, inputs: Tensor, samples: SampleList) -> Any:
        """What the teacher says of the inputs (B, 3, H, W), in ``proj``'s space."""
        teacher = super().teacher_batch(inputs, samples)
        return ProjectedTeacher(teacher, self.clip_proj) if self.clip_proj else teacher

    def forward(
        self, inputs: Tensor, data_samples: OptSampleList = None, mode: str = "tensor"
    ) -> Any:
        """mmengine's three modes; see :meth:`loss` and :meth:`predict`.

        Args:
            inputs: (B, 3, H, W), normalised and padded.
            data_samples: B samples.
            mode: ``'loss'``, ``'predict'``, or ``'tensor'``: logits (B, K, h, w) of the
                words of the samples, background last; without samples embeddings.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            embeds = self.embed_pixels(inputs)
            if data_samples is None:
                return embeds
            words = words_of(data_samples)
            return self.seg_head(embeds, words, self.embed_words(words, inputs.device))
        raise ValueError(f"mode is 'loss', 'predict' or 'tensor', got {mode!r}")

    def embed_pixels(self, inputs: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> unit vectors (B, D, h, w), in float32."""
        feats = self.backbone(inputs)
        return self.proj(self.neck(feats) if self.neck else feats)

    # --------------------------------------------------------------- training

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and samples with ``gt_sem_seg`` -> named losses.

        Raises:
            ValueError: samples without words, or with different ones.
        """
        words = words_of(data_samples)
        text = self.embed_words(words, inputs.device)
        embeds = self.embed_pixels(inputs)
        logits = self.seg_head(embeds, words, text)
        losses = dict(loss_seg=self._cross_entropy(logits, data_samples))
        # what the teacher says of the same pixels; each stands for what it is part of
        if self.distill:
            stride = inputs.shape[-1] // embeds.shape[-1]
            background = logits.softmax(1)[:, -1] if self.seg_head.background else None
            regions = pixel_regions(embeds, background, stride)
            for sample in data_samples:  # there are no boxes
                sample.gt_instances = InstanceData(bboxes=embeds.new_zeros(0, 4))
            vectors = None if text is None else text.vectors
            student = StudentBatch(
                [embeds], data_samples, vectors, regions, progress=training_progress()
            )
            losses.update(self.taught(student, inputs))
        # distributed training waits for ever for a parameter without a gradient
        if self.clip_proj is not None:
            idle = sum(p.sum() for p in self.clip_proj.parameters())
            losses["loss_seg"] = losses["loss_seg"] + 0 * idle
        return losses

    def embed_words(
        self, words: Vocabulary | Sequence[Words], device: torch.device
    ) -> TextEmbeds | None:
        """Embeddings of K classes; None for a closed head, which needs none."""
        return self.embed(words, device) if self.seg_head.classes is None else None

    def _cross_entropy(self, logits: Tensor, samples: SampleList) -> Tensor:
        """The mean over the labelled pixels of the joint batch; a scalar."""
        # some pixels of the labels (B, H, W), in the middle of their squares
        labels = torch.stack([s.gt_sem_seg.sem_seg[0] for s in samples]).long()
        stride = self.label_stride
        labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        # background is the last channel, or teaches nothing
        last = logits.shape[1] - 1
        target = last if self.seg_head.background else IGNORED
        labels = labels.masked_fill(labels == BACKGROUND, target)
        logits = interpolated(logits, labels.shape[-2:])
        loss = F.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED, reduction="none"
        )
        # the weighted mean
        weight = (labels != IGNORED).float()
        if self.seg_head.background:
            weight = weight.where(labels != last, weight * self.background_weight)
        total, processes = joint_total(weight.sum())
        mean = (loss * weight).sum() * processes / total.clamp(min=1e-6)
        return mean * self.seg_weight

    # -------------------------------------------------------------- inference

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        text: TextEmbeds | None = None,
        cfg: dict[str, Any] | None = None,
    ) -> SampleList:
        """Images (B, 3, H, W) -> samples with ``pred_sem_seg``.

        It has ``sem_seg`` (1, H, W) int64, the class of each pixel of the original
        image, or ``BACKGROUND``, and ``confidence`` (1, H, W), its share among the
        words and the background; with ``scores`` in the configuration also the shares
        of all words, (K, H, W). Images do not depend on their neighbours.

        Args:
            inputs: normalised and padded.
            data_samples: B samples with the same K classes as ``words``.
            text: embeddings of these classes; None embeds the words.
            cfg: in place of ``test_cfg``.
        """
        cfg = self.test_cfg if cfg is None else cfg
        words = words_of(data_samples)
        if text is None:
            text = self.embed_words(words, inputs.device)

        def ask(images: Tensor, samples: SampleList) -> list[PixelData]:
            logits = self.seg_head(self.embed_windows(images, cfg), words, text)
            each = zip(logits.float(), samples)
            return [self._label(maps, images.shape[-2:], s, cfg) for maps, s in each]

        for sample, found in zip(data_samples, as_if_alone(inputs, data_samples, ask)):
            sample.pred_sem_seg = found
        return data_samples

    def _label(
        self, logits: Tensor, padded: Sequence[int], sample: Any, cfg: dict[str, Any]
    ) -> PixelData:
        """Logits (K, h, w) of a padded input -> what its pixels are."""
        last = len(logits) - 1 if self.seg_head.background else None
        sizes = padded, sample.img_shape[:2], sample.metainfo.get("ori_shape")
        found = label_pixels(logits, FullSize(*sizes), last)
        if cfg.get("scores"):
            shares = FullSize(*sizes)(logits).softmax(0)
            found.scores = shares if last is None else shares[:last]
        return found

    def embed_windows(self, inputs: Tensor, cfg: dict[str, Any]) -> Tensor:
        """As :meth:`embed_pixels`; with ``window`` the mean over windows.

        Its scores for a word are then the mean of those in all windows, since they are
        linear in the embedding.
        """
        window, step = cfg.get("window"), cfg.get("stride")
        height, width = inputs.shape[-2:]
        if not window or max(height, width) <= window:
            return self.embed_pixels(inputs)
        # corners of the windows; the last ones end with the image
        total: Any = None
        for top in starts(height, window, step or window):
            for left in starts(width, window, step or window):
                part = inputs[..., top : top + window, left : left + window]
                embeds = self.embed_pixels(part)
                stride = part.shape[-1] // embeds.shape[-1]
                if total is None:
                    shape = (height // stride, width // stride)
                    total = embeds.new_zeros(*embeds.shape[:2], *shape)
                    seen = embeds.new_zeros(shape)
                y, x = top // stride, left // stride
                rows = slice(y, y + embeds.shape[2])
                columns = slice(x, x + embeds.shape[3])
                total[..., rows, columns] += embeds
                seen[rows, columns] += 1
        return total / seen
