"""Any backbone and a global head: whole images in CLIP's space, without boxes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, OptSampleList, SampleList
from mmengine.model import BaseModel
from torch import Tensor, nn

from .distill.base import Distillation, StudentBatch
from .pixels import filled_part
from .student import Student, words_of


@MODELS.register_module()
class ImageTextModel(Student, BaseModel):
    """A small image encoder in CLIP's space: zero-shot classification and retrieval.

    images -> backbone -> [neck] -> global head: unit vectors. Only this side learns;
    the text encoder is frozen, and no part of the checkpoint. Its parts have the names
    of :class:`KDEOVDetector`'s, so the checkpoint of a detector with a global head
    can be loaded here too.

    Args:
        backbone: any mm backbone: ``mmdet.ResNet``, ``mmyolo.YOLOv8CSPDarknet``,
            ``mmdet.EfficientNet``.
        global_head: :class:`GlobalHead`.
        text_encoder: :class:`kdeov_mm.clip.CLIPTextEncoder`.
        neck: e.g. ``mmyolo.YOLOv8PAFPN``; None for none.
        teacher: :class:`kdeov_mm.clip.CLIPImageTeacher`; needed to train.
        data_preprocessor, init_cfg: mmengine's.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        global_head: dict[str, Any],
        text_encoder: dict[str, Any],
        neck: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck else None
        self.global_head = MODELS.build(global_head)
        self.text_encoder = MODELS.build(text_encoder)
        self.teacher = MODELS.build(teacher) if teacher else None
        self.check_clip()
        self.to(memory_format=torch.channels_last)

    @property
    def distill_heads(self) -> dict[str, Distillation]:
        """The modules that learn from the teacher, by name."""
        return {"global_head": self.global_head} if self.global_head.learns else {}

    def check_clip(self) -> None:
        """As the parent's; and the teacher is live, and there are no regions."""
        if self.global_head.sources:
            raise ValueError(
                "model.global_head.sources: there are no boxes here, and no regions; "
                "leave it out, or use KDEOVDetector."
            )
        super().check_clip()
        if self.distill_heads and not self.teacher.is_live:
            raise ValueError(
                "stored embeddings serve detectors: use the live teacher here, "
                "model.teacher.type='CLIPImageTeacher'."
            )

    def forward(
        self,
        inputs: Tensor,
        data_samples: OptSampleList = None,
        mode: str = "tensor",
    ) -> Any:
        """mmengine's three modes; see :meth:`loss`, :meth:`predict`, :meth:`_forward`.

        Args:
            inputs: (B, 3, H, W), normalised and padded.
            data_samples: B samples.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.
        """
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            return self._forward(inputs, data_samples)
        raise ValueError(f"mode is 'loss', 'predict' or 'tensor', got {mode!r}")

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and samples -> named losses.

        Raises:
            ValueError: there is no teacher, or nothing to learn from.
        """
        if self.teacher is None or not self.global_head.learns:
            raise ValueError(
                "nothing to learn: give model.global_head `distances`, `contrast` or "
                "both, and the model a `teacher`."
            )
        student = StudentBatch(self.extract_feat(inputs), data_samples)
        teacher = self.teacher_batch(inputs, data_samples)
        return self.global_head.loss(student, teacher)

    def predict(self, inputs: Tensor, data_samples: SampleList) -> SampleList:
        """Images (B, 3, H, W) -> samples, see :meth:`Student.predict_images`."""
        return self.predict_images(inputs, data_samples)

    def _forward(
        self, inputs: Tensor, data_samples: OptSampleList = None
    ) -> dict[str, Any]:
        """The dictionary of ``KDEOVDetector._forward``, whose ``fused_map`` and
        ``predictions`` are None here; also of the whole batch with its padding."""
        feats = self.extract_feat(inputs)
        filled = filled_part(data_samples or [DetDataSample()] * len(inputs))
        embeds = self.global_head.embed(feats, filled.to(inputs.device))
        keys = ("text_features", "logits", "fused_map", "predictions")
        outputs: dict[str, Any] = dict.fromkeys(keys)
        if data_samples and "words" in data_samples[0]:
            text = self.embed(words_of(data_samples), embeds.device)
            outputs["text_features"] = text.vectors
            outputs["logits"] = self.global_head.logits(embeds, text)
        return dict(outputs, visual_features=embeds, visual_map=feats)

    def extract_feat(self, inputs: Tensor) -> Sequence[Tensor]:
        """Images (B, 3, H, W) -> L maps (B, C_l, H_l, W_l)."""
        feats = self.backbone(inputs)
        return self.neck(feats) if self.neck else feats

    def get_trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer is given: the image side, and the temperature."""
        return (p for p in self.parameters() if p.requires_grad)

    def parameter_summary(self) -> str:
        """A table: module, trainable and frozen parameters, in thousands.

        The text encoder is loaded to be counted.
        """
        # one row for each part, and the text encoder, which is no submodule
        parts: dict[str, Any] = dict(self.named_children())
        parts.pop("data_preprocessor")
        rows = [
            (name, _count(module, True), _count(module, False))
            for name, module in parts.items()
        ]
        rows.append(("text encoder", 0, self.text_encoder.num_parameters()))
        rows.append(("together", sum(r[1] for r in rows), sum(r[2] for r in rows)))
        lines = [f"{'module':<16}{'trainable':>12}{'frozen':>12}"]
        lines += [f"{n:<16}{t / 1e3:>10.1f} k{f / 1e3:>10.1f} k" for n, t, f in rows]
        return "\n".join(lines)


def _count(module: nn.Module, trainable: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad is trainable)
