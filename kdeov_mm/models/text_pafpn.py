"""YOLO-World's neck: YOLOv8's, whose layers attend to the words.

Cheng et al., 2024, "YOLO-World: Real-Time Open-Vocabulary Object Detection", section
3.3. Names of weights are those of their files.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmyolo.models.layers import CSPLayerWithTwoConv
from mmyolo.models.necks import YOLOv8PAFPN
from torch import Tensor, nn

from .fusion import WithWords

HEAD_CHANNELS = 32  # of an attention head, in all of their sizes
PART = 1 << 18  # similarities of locations and words at once: what a cache holds


class MaxSigmoidAttention(nn.Module):
    """Channels times the sigmoid of how much their location resembles any word.

    Each head has its own gate, of its channels and the word that resembles them most.

    Args:
        channels: C of the maps; M = C / 32 heads.
        text_dims: dimension D of the text vectors.
        norm_cfg: of the convolution.
    """

    def __init__(self, channels: int, text_dims: int, norm_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.heads = max(channels // HEAD_CHANNELS, 1)
        self.guide_fc: nn.Module = nn.Linear(text_dims, channels)
        self.bias = nn.Parameter(torch.zeros(self.heads))
        self.project_conv = ConvModule(
            channels, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None
        )

    def forward(self, feats: Tensor, text: Tensor) -> Tensor:
        """Maps (B, C, H, W) and words (K, D) or (B, K, D) -> maps, same shape."""
        # (B, C, H, W) -> (B, M, H*W, C/M), and (..., K, C) -> (..., M, C/M, K)
        rows = feats.flatten(2).transpose(1, 2).unflatten(2, (self.heads, -1))
        rows = rows.transpose(1, 2)
        guide = self.guide_fc(text.to(feats.dtype)).unflatten(-1, (self.heads, -1))
        guide = guide.transpose(-3, -2).transpose(-2, -1)
        # the word that is most alike, (B, M, H*W); in parts, which bounds the memory
        size = rows.shape[2]
        if not torch.compiler.is_exporting():
            size = max(PART // (rows[..., 0, 0].numel() * guide.shape[-1]), 1)
        alike = torch.cat([(r @ guide).amax(-1) for r in rows.split(size, 2)], 2)
        gate = (alike / math.sqrt(rows.shape[-1]) + self.bias[:, None]).sigmoid()
        # a gate for the channels of each head
        gate = gate.unflatten(2, feats.shape[2:])[:, :, None]  # (B, M, 1, H, W)
        hidden = self.project_conv(feats).unflatten(1, (self.heads, -1))
        return (hidden * gate).flatten(1, 2)


class TextCSPLayer(CSPLayerWithTwoConv):
    """YOLOv8's CSP layer, to whose parts the attention of the last one is added.

    Args:
        layer: channels and depth are those of this one.
        text_dims: dimension D of the text vectors.
        norm_cfg, act_cfg: of the convolutions.
    """

    def __init__(
        self,
        layer: CSPLayerWithTwoConv,
        text_dims: int,
        norm_cfg: dict[str, Any],
        act_cfg: dict[str, Any],
    ) -> None:
        out, more = layer.final_conv.out_channels, len(layer.blocks)
        super().__init__(
            layer.main_conv.in_channels,
            out,
            num_blocks=more,
            add_identity=False,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )
        self.final_conv = ConvModule(
            (3 + more) * self.mid_channels, out, 1, norm_cfg=norm_cfg, act_cfg=act_cfg
        )
        self.attn_block = MaxSigmoidAttention(self.mid_channels, text_dims, norm_cfg)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Maps (B, C, H, W) and words (K, D) or (B, K, D) -> maps (B, C', H, W)."""
        parts = [*self.main_conv(x).chunk(2, 1)]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.final_conv(torch.cat([*parts, self.attn_block(parts[-1], text)], 1))


class ImagePooling(nn.Module):
    """Words that attend to 3 x 3 regions of each level: image-pooling attention.

    Args:
        channels: C_l of each level.
        text_dims: dimension D of the text vectors.
        embed_dims: of queries, keys and values.
        heads: of the attention.
    """

    def __init__(
        self,
        channels: Sequence[int],
        text_dims: int,
        embed_dims: int = 256,
        heads: int = 8,
    ) -> None:
        super().__init__()

        def normed(width: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dims))

        self.heads = heads
        self.projections = nn.ModuleList(
            ConvModule(c, embed_dims, 1, act_cfg=None) for c in channels
        )
        self.query = normed(text_dims)
        self.key, self.value = normed(embed_dims), normed(embed_dims)
        self.proj = nn.Linear(embed_dims, text_dims)

    def forward(self, text: Tensor, feats: Sequence[Tensor]) -> Tensor:
        """Words (K, D) and L maps (B, C_l, H_l, W_l) -> words of images (B, K, D)."""
        pooled = [_best_of_regions(p(f)) for p, f in zip(self.projections, feats)]
        tokens = torch.cat(pooled, 2).transpose(1, 2)  # (B, 9 L, E)
        words = text.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        # (B, n, E) -> (B, M, n, E / M)
        query, key, value = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(words), self.key(tokens), self.value(tokens))
        )
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return words + self.proj(found.transpose(1, 2).flatten(2))


def _best_of_regions(feats: Tensor, side: int = 3) -> Tensor:
    """Maps (B, C, H, W) -> the maxima of 3 x 3 regions (B, C, 9).

    torch's ``adaptive_max_pool2d``, which no exporter knows for free sizes.
    """

    def regions(length: int) -> list[slice]:
        # rounded up without a negative number, of which ONNX cuts off the rest
        last = side - 1
        return [
            slice(i * length // side, ((i + 1) * length + last) // side)
            for i in range(side)
        ]

    rows, columns = map(regions, feats.shape[2:])
    return torch.stack(
        [feats[..., r, c].amax((2, 3)) for r in rows for c in columns], 2
    )


class HeldGuide(nn.Module):
    """What ``guide_fc`` says of fixed words: (K, C), whatever it is given."""

    def __init__(self, guide: Tensor) -> None:
        super().__init__()
        self.register_buffer("guide", guide.detach())

    def forward(self, text: Tensor) -> Tensor:
        """The guide, in the precision that is asked."""
        return self.get_buffer("guide").to(text.dtype)


@MODELS.register_module()
class TextPAFPN(YOLOv8PAFPN):
    """YOLOv8's neck with :class:`TextCSPLayer`: a fusion that takes a neck's place.

    Features and words go in together, so it is the detector's ``fusion``, with
    ``neck=None``: what does not depend on words is the backbone alone.

    Args:
        in_channels, out_channels: of each level before ``widen_factor``.
        text_dims: dimension D of the text vectors.
        image_pooling: words attend to the image between both paths, as in version 1;
            version 2 has none of it.
        kwargs: those of ``mmyolo.YOLOv8PAFPN``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        text_dims: int,
        image_pooling: bool = False,
        **kwargs: Any,
    ) -> None:
        self.text_dims = text_dims
        super().__init__([*in_channels], [*out_channels], **kwargs)
        widths = [int(c * self.widen_factor) for c in out_channels]
        self.text_enhancer = ImagePooling(widths, text_dims) if image_pooling else None

    def build_top_down_layer(self, idx: int) -> nn.Module:
        """The parent's, with words."""
        return self._with_text(super().build_top_down_layer(idx))

    def build_bottom_up_layer(self, idx: int) -> nn.Module:
        """The parent's, with words."""
        return self._with_text(super().build_bottom_up_layer(idx))

    def _with_text(self, layer: Any) -> TextCSPLayer:
        return TextCSPLayer(layer, self.text_dims, self.norm_cfg, self.act_cfg)

    def forward(self, feats: Sequence[Tensor], text: Tensor) -> tuple[Tensor, ...]:
        """C3, C4, C5, each (B, C_l, H_l, W_l), and words (K, D) -> P3, P4, P5."""
        # from coarse to fine
        inner = [feats[-1]]
        paths = zip(self.upsample_layers, self.top_down_layers, feats[-2::-1])
        for upsample, layer, fine in paths:
            inner.append(layer(torch.cat([upsample(inner[-1]), fine], 1), text))
        inner.reverse()
        # version 1: the words of each image
        if self.text_enhancer is not None:
            text = self.text_enhancer(text, inner)
        # and back
        outs = [inner[0]]
        paths = zip(self.downsample_layers, self.bottom_up_layers, inner[1:])
        for downsample, layer, coarse in paths:
            outs.append(layer(torch.cat([downsample(outs[-1]), coarse], 1), text))
        return tuple(outs)

    def fixed(self, text: Tensor) -> nn.Module:
        """Maps -> maps for words (K, D): what these give the attention is constant.

        With ``image_pooling`` that is so before it alone.
        """
        neck = copy.deepcopy(self)
        paths = [neck.top_down_layers]
        if self.text_enhancer is None:
            paths.append(neck.bottom_up_layers)
        for layer in (layer for path in paths for layer in path):
            attention = layer.attn_block
            guide = attention.guide_fc(text.to(attention.bias.dtype))
            attention.guide_fc = HeldGuide(guide)
        return WithWords(neck, text)
