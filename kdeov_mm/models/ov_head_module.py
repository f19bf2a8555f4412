"""YOLOv8's branches, the class branch in the teacher's space."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.utils import multi_apply
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .box_branches import BoxBranches, light_branches, without_autocast
from .folding import DividedByLength, FoldedLevel, fold_level, unit_kernel
from .postprocess import SplitOutput
from .projection import SpatialProjection
from .text_classifier import (
    Linear1x1,
    TextClassifier,
    TextEmbeds,
    rename_old_keys,
)

BATCH_NORM = dict(type="BN")


class HeadInput(NamedTuple):
    """What the head module is given.

    Attributes:
        feats: L maps (B, C_l, H_l, W_l).
        text: of the K classes.
    """

    feats: Sequence[Tensor]
    text: TextEmbeds


@MODELS.register_module()
class OVHeadModule(BoxBranches):
    """YOLOv8's two branches; the class branch ends in the teacher's space.

    A location's score for a class t is ``sigmoid(exp(logit_scale) * <e, t> + bias_l)``,
    see :class:`TextClassifier`; the bias of each level begins with YOLOv8's log prior.
    The embedding e has about unit length: divided by its L2 norm, or
    (``l2_norm=False``) only by sqrt(D). At test time projection, norms and words fold
    into one product (:func:`kdeov_mm.models.folding.fold_level`).

    Args:
        embed_dims: dimension D of the teacher's space.
        in_channels: channels of each level before ``widen_factor``.
        hidden_channels: least width of the class branch.
        projection_norm: norm of :class:`SpatialProjection`; None for no norm.
        l2_norm: divide embeddings by their length.
        level_scales: each level has a temperature of its own.
        adapter: config of :class:`ClassFiLM`; None leaves the words as they are.
        centred: see :class:`TextClassifier`.
        light: :func:`light_branches` in place of YOLOv8's.
        prior_words: number of words of the log prior.
        prior_size: image side in pixels of the log prior.
        kwargs: those of ``mmyolo.YOLOv8HeadModule``.
    """

    def __init__(
        self,
        embed_dims: int,
        in_channels: int | Sequence[int],
        hidden_channels: int = 80,
        projection_norm: dict[str, Any] | None = BATCH_NORM,
        l2_norm: bool = False,
        level_scales: bool = False,
        adapter: dict[str, Any] | None = None,
        centred: bool = False,
        light: bool = False,
        prior_words: int = 80,
        prior_size: int = 640,
        **kwargs: Any,
    ) -> None:
        self.embed_dims = embed_dims
        self.projection_norm = projection_norm
        self.l2_norm = l2_norm
        self.level_scales = level_scales
        self.centred = centred
        self.light = light
        self.prior = prior_words * prior_size**2
        # the parent's class branch is at least `num_classes` wide
        super().__init__(hidden_channels, in_channels, **kwargs)
        # after the branches: random numbers are drawn in the order of version 0.1.0
        if adapter:
            self.classifier.adapter = MODELS.build(adapter)
        self._register_load_state_dict_pre_hook(rename_old_keys)

    def _init_layers(self) -> None:
        # before the branches: optimizers number parameters in this order since 0.1.0
        self.classifier = TextClassifier(
            self.embed_dims,
            num_biases=self.num_levels,
            level_scales=self.level_scales,
            centred=self.centred,
        )
        super()._init_layers()
        width = self.cls_preds[0][-1].in_channels
        self.cls_preds: Any = nn.ModuleList(branch[:-1] for branch in self.cls_preds)
        if self.light:
            self.cls_preds, self.reg_preds = light_branches(self)
        # in place of the last convolution, to K classes
        for branch in self.cls_preds:
            branch.append(
                SpatialProjection(width, self.embed_dims, self.projection_norm)
            )

    def init_weights(self) -> None:
        """Box sides of one bin, and the log prior on each level's bias."""
        BaseModule.init_weights(self)
        # as YOLOv8's head
        for branch in self.reg_preds:
            nn.init.ones_(branch[-1].bias)
        strides = torch.tensor(self.featmap_strides, dtype=torch.float)
        # in place: the model may be on its device already
        with torch.no_grad():
            self.classifier.bias.copy_((5 * strides**2 / self.prior).log())

    def trunk(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """L maps (B, C_l, H_l, W_l) -> what is projected, and boxes, per level.

        Returns:
            L maps (B, C, H_l, W_l); L box sides (B, 4, H_l, W_l) in strides; in
            training, also L box logits (B, H_l * W_l, 4, reg_max).
        """
        trunks = [branch[:-1] for branch in self.cls_preds]
        return multi_apply(self.forward_single, feats, trunks, self.reg_preds)

    def embed(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """As :meth:`trunk`, projected: embeddings (B, D, H_l, W_l), and boxes."""
        hidden, *boxes = self.trunk(feats)
        return self.project(hidden), *boxes

    def project(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """L maps (B, C, H_l, W_l) of :meth:`trunk` -> embeddings (B, D, H_l, W_l)."""
        embeds = [branch[-1](h) for branch, h in zip(self.cls_preds, hidden)]
        if self.l2_norm:
            return [F.normalize(e, dim=1) for e in embeds]
        return [e / self.embed_dims**0.5 for e in embeds]

    def classify(self, embeds: Sequence[Tensor], vectors: Tensor) -> list[Tensor]:
        """L maps (B, D, H, W) and vectors (K, D) -> logits (B, K, H, W), in float32."""
        # in full precision: of half logits other locations are matched
        with without_autocast(vectors.device):
            layers = self.classifier.layers(vectors.float())
            return [layer(embed.float()) for embed, layer in zip(embeds, layers)]

    @property
    def folds(self) -> bool:
        """Whether projection, norms and text product now are one linear map."""
        return all(branch[-1].is_linear for branch in self.cls_preds)

    @property
    def is_fixed(self) -> bool:
        """Whether that map, but for the length, is the same for all images."""
        return all(branch[-1].is_fixed for branch in self.cls_preds)

    def _folding_is_cheaper(self, number: int) -> bool:
        """Of K words, features (C) times (K, C), or embedded (D) and times (K, D)."""
        # multiplications per location
        channels, dims = self.cls_preds[0][-1].project.in_channels, self.embed_dims
        # an exported graph serves any number of words
        if channels <= dims or torch.compiler.is_exporting():
            return channels <= dims
        return channels * number <= dims * (channels + number)

    def split_last(self, x: HeadInput) -> SplitOutput:
        """All but the last product, in the order that costs the least."""
        hidden, *boxes = self.trunk(x.feats)
        vectors, owner = x.text
        layers = self.classifier.layers(vectors)
        # features times the folded matrix, or embeddings times the vectors; `len`
        # would fix the number of words in an exported graph
        if self.folds and self._folding_is_cheaper(vectors.shape[0]):
            branches = zip(self.cls_preds, hidden, layers)
            levels = [fold_level(b[-1], h, w, self.l2_norm) for b, h, w in branches]
            scaled = [level[0] for level in levels]
            layers = [level[1] for level in levels]
        else:
            scaled = self.project(hidden)
        return SplitOutput(scaled, layers, owner, boxes)

    def forward(self, x: HeadInput) -> tuple[list[Tensor], ...]:
        """Features and text -> logits and boxes, as the parent's outputs.

        A class with several vectors gets the score of the best of them.
        """
        output = self.split_last(x)
        return output.logits(), *output.boxes

    @torch.no_grad()
    def final_layers(self, vectors: Tensor) -> list[nn.Sequential]:
        """Vectors (W, D) -> for each level what follows the trunk.

        A convolution where projection, norm and words are the same map for all images,
        behind a :class:`DividedByLength` with the L2 norm; with GroupNorm a
        :class:`FoldedLevel`; with very many words of few dimensions the projection as
        it is, and a convolution behind it.
        """
        layers = self.classifier.layers(vectors)
        fold = self.folds and self._folding_is_cheaper(vectors.shape[0])
        ends = []
        for branch, words in zip(self.cls_preds, layers):
            projection = branch[-1]
            if fold and self.is_fixed:
                ends.append(nn.Sequential(*self._fixed(projection, words)))
            elif fold:
                conv = self._conv(words)
                level = FoldedLevel(copy.deepcopy(projection), conv, self.l2_norm)
                ends.append(nn.Sequential(level))
            else:
                # without L2 norm, sqrt(D) goes into the kernel
                unit = [UnitLength()] if self.l2_norm else []
                norm = 1 if self.l2_norm else self.embed_dims**0.5
                conv = self._conv(Linear1x1(words.weight / norm, words.bias))
                ends.append(nn.Sequential(copy.deepcopy(projection), *unit, conv))
        return ends

    def _fixed(
        self, projection: SpatialProjection, words: Linear1x1
    ) -> list[nn.Module]:
        """Modules from features to words, for a map that is the same for all images."""
        # without GroupNorm the features do not matter
        if not self.l2_norm:
            return [self._conv(fold_level(projection, words.weight, words, False)[1])]
        matrix, shift, _ = projection.linear(words.weight)
        dtype = self.classifier.logit_scale.dtype
        length = DividedByLength(matrix, shift).to(dtype)
        return [length, self._conv(unit_kernel(words, matrix, shift, length.ones))]

    def _conv(self, layer: Linear1x1) -> nn.Conv2d:
        """The convolution as a module, in the precision of the head."""
        # contiguous: exporters and channels-last memory need it
        conv = nn.Conv2d(layer.weight.shape[1], len(layer.weight), 1)
        dtype = self.classifier.logit_scale.dtype
        weight = layer.weight.to(dtype)[..., None, None]
        conv.weight = nn.Parameter(weight.contiguous())
        conv.bias = nn.Parameter(layer.bias.to(dtype).contiguous())
        return conv

    def folded_boxes(self) -> Any:
        """A copy of the box branches, for a folded head."""
        return copy.deepcopy(self.reg_preds)


class UnitLength(nn.Module):
    """Embeddings (B, D, H, W) divided by their L2 norm."""

    def forward(self, embeds: Tensor) -> Tensor:
        """Divide."""
        return F.normalize(embeds, dim=1)


@MODELS.register_module()
class GridHeadModule(OVHeadModule):
    """Grid default boxes: a square about each location, nothing learnt.

    The original KDEOV design's boxes; kept to be compared with.

    Args:
        grid_side: side of the boxes, in strides of the level.
        kwargs: those of :class:`OVHeadModule`.
    """

    def __init__(self, grid_side: float = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid_side = grid_side

    def box_sides(self, logits: Tensor) -> Tensor:
        """The same sides everywhere, whatever the logits (..., 4, R)."""
        return torch.full_like(logits[..., 0], self.grid_side / 2, dtype=torch.float)

    def folded_boxes(self) -> Any:
        """As the parent's; the mean of the box distribution is the side, everywhere."""
        branches = super().folded_boxes()
        # all probability on the two bins next to the side
        bins = torch.arange(self.reg_max, dtype=torch.float)
        share = (1 - (bins - self.grid_side / 2).abs()).clamp(min=1e-30)
        for branch in branches:
            nn.init.zeros_(branch[-1].weight)
            branch[-1].bias.data = share.log().repeat(4).to(branch[-1].bias)
        return branches
