"""Parts of the student of masks: pixel embeddings; heads of any, or of fixed words."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import DATASETS, MODELS
from torch import Tensor, nn

from ..datasets.segmentation import SegDataset
from ..vocabulary import Words, as_vocabulary
from .label_maps import interpolated
from .projection import SpatialProjection
from .text_classifier import TextClassifier, TextEmbeds


@MODELS.register_module()
class PixelProjection(nn.Module):
    """Maps of several levels to one of pixel embeddings, at the finest of them.

    The coarser levels are mixed at the size of the second, where convolutions are
    cheap and see whole objects; the finest one adds edges. As in DeepLabv3+'s decoder
    (Chen et al., 2018).

    Args:
        in_channels: of two levels or more, the finest first.
        embed_dims: dimension D of the embeddings.
        hidden_channels: of all convolutions but the last.
        num_convs: 3x3 convolutions of the coarser levels.
        norm_cfg, act_cfg: mm's.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        embed_dims: int,
        hidden_channels: int = 64,
        num_convs: int = 2,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(
                f"in_channels has the channels of two levels or more, got {in_channels}"
            )
        self.embed_dims = embed_dims
        norm, act = norm_cfg or dict(type="BN"), act_cfg or dict(type="ReLU")
        conv = partial(
            ConvModule, out_channels=hidden_channels, norm_cfg=norm, act_cfg=act
        )

        def mixed(count: int, convs: int) -> nn.Sequential:
            first = conv(count * hidden_channels, kernel_size=1)
            rest = [
                conv(hidden_channels, kernel_size=3, padding=1) for _ in range(convs)
            ]
            return nn.Sequential(first, *rest)

        # each level, the coarser ones together, and these with the finest
        self.levels = nn.ModuleList(conv(c, kernel_size=1) for c in in_channels)
        self.coarse = mixed(len(in_channels) - 1, num_convs)
        self.fine = mixed(2, 1)
        self.project = SpatialProjection(hidden_channels, embed_dims, norm)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """L maps, the finest first -> (B, D, h, w) in float32, unit vectors."""
        fine, *coarse = [level(feat) for level, feat in zip(self.levels, feats)]
        coarse = [interpolated(m, coarse[0].shape[-2:]) for m in coarse]
        mixed = interpolated(self.coarse(torch.cat(coarse, 1)), fine.shape[-2:])
        mixed = self.fine(torch.cat([fine, mixed], 1))
        return F.normalize(self.project(mixed).float(), dim=1)


@MODELS.register_module()
class OpenSegHead(nn.Module):
    """Pixels against any words: cosine times a temperature, and a learnt background.

    Args:
        embed_dims: dimension D of the pixels and words.
        background: a learnt vector for what is none of the words.
        classifier: other arguments of :class:`TextClassifier`.
    """

    classes = None

    def __init__(
        self, embed_dims: int, background: bool = True, **classifier: Any
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.background = background
        self.classifier = TextClassifier(
            embed_dims, background=background, **classifier
        )

    def forward(
        self, embeds: Tensor, words: Sequence[Words], text: TextEmbeds
    ) -> Tensor:
        """Pixels (B, D, h, w) and K classes -> logits (B, K, h, w), background last."""
        batch_size, _, height, width = embeds.shape
        logits = self.classifier(embeds.permute(0, 2, 3, 1).flatten(0, 2), text)
        shape = (batch_size, height, width, logits.shape[1])
        return logits.view(shape).permute(0, 3, 1, 2)


@MODELS.register_module()
class ClosedSegHead(nn.Module):
    """The classes of the training, by a convolution; any of them can be asked.

    Args:
        embed_dims: dimension D of the pixels.
        classes: their words; or a data set that has them, ``'VOCSegDataset'``.
        background: one more channel, for what is none of them.
    """

    def __init__(
        self, embed_dims: int, classes: str | Sequence[str], background: bool = True
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        if isinstance(classes, str):
            # not `get`, which imports what a dotted name names
            dataset: Any = DATASETS.module_dict.get(classes)
            if not (isinstance(dataset, type) and issubclass(dataset, SegDataset)):
                raise ValueError(f"{classes!r} is no data set of masks")
            classes = dataset.METAINFO.get("classes", ())
        self.classes = tuple(own[0] for own in as_vocabulary(classes).words)
        self.background = background
        self.conv = nn.Conv2d(embed_dims, len(self.classes) + background, 1)

    def forward(
        self, embeds: Tensor, words: Sequence[Words], text: TextEmbeds | None = None
    ) -> Tensor:
        """Pixels (B, D, h, w) and K classes -> logits (B, K, h, w), background last.

        Raises:
            ValueError: a word that was not learnt.
        """
        number = {name.casefold(): i for i, name in enumerate(self.classes)}
        found = [[number.get(word.casefold()) for word in own] for own in words]
        known = [next((i for i in its if i is not None), None) for its in found]
        if unknown := [own[0] for own, i in zip(words, known) if i is None]:
            raise ValueError(
                f"this model knows {len(self.classes)} classes, "
                f"{list(self.classes[:5])}, ..., and not {unknown[:5]}: ask it for "
                "these, or train with seg_head.type='OpenSegHead'."
            )
        rows = [*known, *[len(number)] * self.background]
        logits: Tensor = self.conv(embeds)
        return logits if rows == [*range(logits.shape[1])] else logits[:, rows]
