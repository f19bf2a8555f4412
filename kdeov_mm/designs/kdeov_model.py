"""KDEOVModel: the original KDEOV design, by the calls of its documents."""

from typing import Any

import torch
from torch import Tensor

from ..clip import CLIPSource
from ..inference.api import as_dicts, check_names
from ..models import TextEmbeds
from ..models.pixels import untouched
from ..vocabulary import Asked
from .tensor_model import TensorModel, Texts, choose, global_head

CHANNELS = [256, 512, 1024]  # of P3, P4 and P5, before the width multiplier
# name -> backbone and width multiplier
BACKBONES = {
    "yolov8n": ("mmyolo.YOLOv8CSPDarknet", 0.25),
    "yolov8s": ("mmyolo.YOLOv8CSPDarknet", 0.5),
    "yolov5s": ("mmyolo.YOLOv5CSPDarknet", 0.5),
}
FUSIONS = {"film": "FiLMFusion", "cross_attention": "CrossAttentionFusion", None: None}
BOX_HEAD: dict[str, Any] = dict(
    type="OVHead",
    # mmyolo's defaults, named with their package
    bbox_coder=dict(type="mmyolo.DistancePointBBoxCoder"),
    loss_bbox=dict(
        type="mmyolo.IoULoss",
        iou_mode="ciou",
        bbox_format="xyxy",
        reduction="sum",
        loss_weight=7.5,
        return_iou=False,
    ),
)
TEST_CFG = dict(
    multi_label=True,
    nms_pre=30000,
    score_thr=0.001,
    nms=dict(type="nms", iou_threshold=0.7),
    max_per_img=300,
)


class KDEOVModel(TensorModel):
    """A :class:`KDEOVDetector` as the KDEOV documents describe and call it.

    YOLO backbone and neck; a global head (pooling, 2-layer MLP, L2) for whole images;
    a fusion with the words and a spatial projection (1x1 convolution, GroupNorm, L2)
    for locations. Two things differ from the documents:

    - Boxes are learnt (:class:`OVHeadModule`), not taken from a grid.
    - Images are embedded before the fusion, so that their vectors do not depend on the
      words that are asked; locations are fused. ``fused_map`` is after it.

    The weights are random: :func:`train_feature_alignment` trains the embeddings of
    images; ``tools/train.py`` trains boxes and locations, too.

    Example:
        >>> import torch
        >>> from kdeov_mm import KDEOVModel
        >>> model = KDEOVModel("shapes", "yolov8n", "film")
        >>> images = torch.randn(2, 3, 64, 64)
        >>> model.encode_image(images).shape
        torch.Size([2, 128])
        >>> model.zero_shot_classify(images, ["red ring", "blue star"]).shape
        torch.Size([2, 2])

    Args:
        clip_model_name: OpenAI's names (``'ViT-B/32'``), or another of
            :meth:`CLIPSource.named`; ``'shapes'`` is tiny and needs no download.
        backbone_type: ``'yolov8n'``, ``'yolov8s'`` or ``'yolov5s'``, each of its width.
        fusion_type: ``'film'``, ``'cross_attention'``, or None.
        device: where it runs.
        pretrained: the CLIP's weights: an open_clip tag, which is downloaded when first
            needed, or a file; None: random ones, to try shapes.

    Raises:
        ValueError: an unknown name, with those that there are.
    """

    def __init__(
        self,
        clip_model_name: str = "ViT-B/32",
        backbone_type: str = "yolov8n",
        fusion_type: str | None = "film",
        device: str | torch.device = "cpu",
        pretrained: str | None = "openai",
    ) -> None:
        backbone, widen = choose("backbone_type", backbone_type, BACKBONES)
        fusion = choose("fusion_type", fusion_type, FUSIONS)
        source = CLIPSource.named(clip_model_name, pretrained)
        # in code, since configs/ is not installed with the package; what is left out
        # are the defaults of mmyolo's parts and of ours
        dims, size = source.model_config()["embed_dim"], dict(widen_factor=widen)
        levels = dict(in_channels=CHANNELS, **size)
        depth = dict(deepen_factor=0.33)
        neck = dict(type="mmyolo.YOLOv8PAFPN", out_channels=CHANNELS, **depth, **levels)
        head_module = dict(
            type="mmdet.OVHeadModule",
            embed_dims=dims,
            projection_norm=dict(type="GN", num_groups=32),
            l2_norm=True,
            **levels,
        )
        model = dict(
            type="KDEOVDetector",
            backbone=dict(type=backbone, **depth, **size),
            neck=neck,
            fusion=fusion and dict(type=fusion, text_dims=dims, **levels),
            bbox_head=dict(head_module=head_module, **BOX_HEAD),
            global_head=global_head(dims, **levels),
            test_cfg=TEST_CFG,
        )
        super().__init__(model, source, device)

    @property
    def detector(self) -> Any:
        """The mm model, a :class:`KDEOVDetector`, as the rest of the package takes."""
        return self.student

    def forward(self, images: Tensor, text: Texts | None = None) -> dict[str, Any]:
        """All outputs for images, with gradient.

        Args:
            images: (B, 3, H, W).
            text: N sentences, or tokens (N, context), or their vectors (N, D).

        Returns:
            ``visual_features`` (B, D), before fusion; ``text_features`` (N, D);
            ``logits`` (B, N), their cosines times ``exp(logit_scale)``; ``visual_map``,
            three maps (B, C_l, H_l, W_l) of the padded images; ``fused_map``, the same
            after fusion with all N texts; ``predictions``, logits and box sides of each
            level. None stands for what needs texts, or a fusion, where there is none.
        """
        inputs, samples = self.prepare(images)
        return self.detector._forward(inputs, samples, self._embed(text, None))

    def zero_shot_classify(self, images: Tensor, class_names: Asked) -> Tensor:
        """Images (B, 3, H, W) and K class names -> logits (B, K), without gradient."""
        text = self.detector.embed(check_names(class_names))
        with untouched(self.detector):
            return self.detector.global_head.logits(self.encode_image(images), text)

    def get_spatial_embeddings(
        self,
        images: Tensor,
        text: Texts | None = None,
        *,
        class_names: Asked | None = None,
    ) -> Tensor:
        """Unit vectors of the locations of the finest level, with gradient.

        Args:
            images: (B, 3, H, W).
            text: what locations are fused with, as in :meth:`forward`; class names can
                be given instead. Neither: no fusion.
            class_names: K class names.

        Returns:
            (B, D, Hf, Wf), a location for each 8 pixels: Hf is H / 8, rounded up.

        Raises:
            ValueError: no such images, or both text and class names.
        """
        return self.get_spatial_pyramid(images, text, class_names=class_names)[0]

    def get_spatial_pyramid(
        self,
        images: Tensor,
        text: Texts | None = None,
        *,
        class_names: Asked | None = None,
    ) -> list[Tensor]:
        """As :meth:`get_spatial_embeddings`, of all levels: 8, 16 and 32 pixels."""
        inputs, _ = self.prepare(images)
        embeds = self._embed(text, class_names)
        feats = self.detector.extract_feat(inputs)
        feats = feats if embeds is None else self.detector.fused(feats, embeds)
        module = self.detector.bbox_head.head_module
        maps, *_ = module.embed(feats)
        # without the locations that are nothing but padding
        sizes = [
            [-(-n // s) for n in images.shape[-2:]] for s in module.featmap_strides
        ]
        return [m[..., :height, :width] for m, (height, width) in zip(maps, sizes)]

    def open_vocabulary_detect(
        self,
        images: Tensor,
        class_names: Asked,
        score_threshold: float = 0.2,
        nms_threshold: float = 0.5,
    ) -> list[dict[str, Any]]:
        """Find classes in images (B, 3, H, W), without gradient.

        Returns:
            As :meth:`KDEOV.open_vocabulary_detect`: of each image ``boxes`` (n, 4),
            xyxy in its pixels, ``scores`` (n,), ``labels`` (n,), that index the class
            names, and ``names``, n strings.
        """
        query = self.kdeov.query(class_names, score_threshold, nms_threshold)
        with untouched(self.detector):
            return as_dicts(self.kdeov.predict_inputs(*self.prepare(images), query))

    def _embed(
        self, text: Texts | None, class_names: Asked | None
    ) -> TextEmbeds | None:
        if class_names is not None:
            if text is not None:
                raise ValueError("give `text` or `class_names`, not both.")
            return self.detector.embed(check_names(class_names))
        if text is None:
            return None
        # vectors of an earlier encode_text are floats, tokens are not
        if isinstance(text, Tensor) and text.is_floating_point():
            dims = self.detector.text_encoder.embed_dims
            if text.shape[1:] != (dims,) or not len(text) or not text.isfinite().all():
                raise ValueError(
                    f"expected vectors (N, {dims}) of finite numbers, got "
                    f"{tuple(text.shape)}"
                )
            return TextEmbeds(text.to(self.device))
        return TextEmbeds(self.encode_text(text))
