"""Features that know which words are asked: (feats, text) -> feats.

Each form is the identity at the start and does not depend on the order of
the words, and has ``fixed(text)``: the same for these words alone. No fusion is a
choice too (``fusion=None``), and so is a whole neck (:class:`TextPAFPN`, which is no
identity). The last form, :class:`ClassFiLM`, changes the words
instead of the features, and folds.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from mmdet.registry import MODELS
from mmyolo.models.utils import make_divisible
from torch import Tensor, nn


def zero_mlp(in_dims: int, out_dims: int) -> nn.Sequential:
    """Two layers whose output is 0 at the start: what they modulate is unchanged."""
    last = nn.Linear(in_dims, out_dims)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(in_dims, in_dims), nn.SiLU(inplace=True), last)


@MODELS.register_module()
class FiLMFusion(nn.Module):
    """Feature-wise linear modulation by the mean of the vocabulary.

    FiLM (Perez et al., 2018). The scale and the shift of each channel come
    from the mean word, so a score depends on which other words are asked;
    training on random vocabularies teaches the student to live with that.

    Args:
        in_channels: channels of each level before ``widen_factor``.
        text_dims: dimension D of the text vectors.
        widen_factor: width multiplier of the neck.
    """

    def __init__(
        self, in_channels: Sequence[int], text_dims: int, widen_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.channels = [make_divisible(c, widen_factor) for c in in_channels]
        self.modulate = zero_mlp(text_dims, 2 * sum(self.channels))

    def forward(self, feats: Sequence[Tensor], text: Tensor) -> tuple[Tensor, ...]:
        """L maps (B, C_l, H_l, W_l) and words (K, D) -> maps, same shapes."""
        # scale and shift each channel, the same at all locations
        return tuple(
            feat * s.view(1, -1, 1, 1) + b.view(1, -1, 1, 1)
            for feat, (s, b) in zip(feats, self._factors(text))
        )

    def _factors(self, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Words (K, D) -> per level the scale and the shift of channels (C_l,)."""
        # one vector for all levels, cut into theirs; in the precision of the weights
        mean = text.mean(0).to(next(self.modulate.parameters()).dtype)
        scale, shift = self.modulate(mean).chunk(2)
        return zip((1 + scale).split(self.channels), shift.split(self.channels))

    def fixed(self, text: Tensor) -> nn.Module:
        """Maps -> maps for words (K, D): a 1x1 convolution of each channel."""
        # with the words fixed, scale and shift are a depthwise 1x1 convolution
        layers = []
        for scale, shift in self._factors(text.detach()):
            layer = nn.Conv2d(len(scale), len(scale), 1, groups=len(scale))
            layer.weight = nn.Parameter(scale.detach().view(-1, 1, 1, 1).clone())
            layer.bias = nn.Parameter(shift.detach().clone())
            layers.append(layer)
        return _PerLevel(layers)


class _PerLevel(nn.ModuleList):
    """A module for each level."""

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(layer(feat) for layer, feat in zip(self, feats))


@MODELS.register_module()
class CrossAttentionFusion(nn.Module):
    """Each location attends to the words and adds what it finds.

    Args:
        in_channels: channels of each level before ``widen_factor``.
        text_dims: dimension D of the text vectors.
        widen_factor: width multiplier of the neck.
        num_heads: attention heads.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        text_dims: int,
        widen_factor: float = 1.0,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        channels = [make_divisible(c, widen_factor) for c in in_channels]
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.attentions = nn.ModuleList()
        for c in channels:
            attention = nn.MultiheadAttention(
                c, num_heads, kdim=text_dims, vdim=text_dims, batch_first=True
            )
            # no influence at the start
            nn.init.zeros_(attention.out_proj.weight)
            nn.init.zeros_(attention.out_proj.bias)
            self.attentions.append(attention)

    def forward(self, feats: Sequence[Tensor], text: Tensor) -> tuple[Tensor, ...]:
        """L maps (B, C_l, H_l, W_l) and words (K, D) -> maps, same shapes."""
        fused = []
        for feat, norm, attend in zip(feats, self.norms, self.attentions):
            # locations are queries, words are keys and values
            words = text.to(feat.dtype).expand(feat.shape[0], -1, -1)  # (B, K, D)
            query = norm(feat.flatten(2).transpose(1, 2))  # (B, HW, C)
            change, _ = attend(query, words, words, need_weights=False)
            # (B, HW, C) -> (B, C, H, W)
            fused.append(feat + change.transpose(1, 2).reshape(feat.shape))
        return tuple(fused)

    def fixed(self, text: Tensor) -> nn.Module:
        """Maps -> maps for words (K, D); the attention to them stays."""
        return WithWords(copy.deepcopy(self), text)


class WithWords(nn.Module):
    """A fusion that holds its words (K, D)."""

    def __init__(self, fusion: nn.Module, text: Tensor) -> None:
        super().__init__()
        self.fusion = fusion
        self.register_buffer("text", text.detach())

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse."""
        return self.fusion(feats, self.get_buffer("text"))


@MODELS.register_module()
class ClassFiLM(nn.Module):
    """FiLM of the location's embedding, for each word by itself.

    A location e scored for the word t after modulation by that word is
    <g(t) * e + b(t), t> = <e, g(t) * t> + <b(t), t>: another vector and a bias
    per word. So a score does not depend on the other words, and with the words
    fixed nothing of it is left to compute. Head option ``adapter``.

    What is left of the shift is a prior of each word, whatever the image. It is learnt
    on the words of the training alone: of others it says too much (on the built-in
    world 3 logits, so that they win on objects of known classes).

    Args:
        text_dims: dimension D of the text vectors.
        shift: whether there is a shift b(t), else the scale g(t) alone.
    """

    def __init__(self, text_dims: int, shift: bool = True) -> None:
        super().__init__()
        self.shift = shift
        self.modulate = zero_mlp(text_dims, (1 + shift) * text_dims)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Words (K, D) -> vectors (K, D) and biases (K,)."""
        # g(t) = 1 + scale, b(t) = shift; in the precision of the weights
        text = text.to(next(self.modulate.parameters()).dtype)
        if not self.shift:
            return (1 + self.modulate(text)) * text, torch.zeros_like(text[:, 0])
        scale, shift = self.modulate(text).chunk(2, dim=-1)  # (K, D) each
        return (1 + scale) * text, (shift * text).sum(-1)
