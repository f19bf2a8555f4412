"""Scores of embeddings for classes: the one text classifier of all heads."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.dist import broadcast
from torch import Tensor, nn

MAX_LOGIT_SCALE = math.log(100)
ENOUGH = 20  # words whose mean says what all words share


class TextEmbeds(NamedTuple):
    """The text embeddings of K classes.

    Attributes:
        vectors: (W, D) unit vectors; W = K where each class has one.
        owner: (W,) the class of each vector, in order; None where each class has one.
    """

    vectors: Tensor
    owner: Tensor | None = None


class Linear1x1(NamedTuple):
    """A 1x1 convolution, of all images or of each.

    Attributes:
        weight: (K, C), or (B, K, C).
        bias: (K,), or (B, K).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, feats: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, K, H, W), in the precision of the maps."""
        weight, bias = self.weight.to(feats.dtype), self.bias.to(feats.dtype)
        if weight.ndim == 2:
            return F.conv2d(feats, weight[..., None, None], bias)
        # image by image: on a CPU three times as fast as one product of matrices, which
        # an exported graph has, because it serves any number of images
        if not torch.compiler.is_exporting():
            each = [self.of(i)(feats[i : i + 1]) for i in range(len(feats))]
            return each[0] if len(each) == 1 else torch.cat(each)
        logits = weight @ feats.flatten(2) + bias[..., None]
        return logits.unflatten(2, feats.shape[2:])

    def part(self, begin: int, end: int) -> "Linear1x1":
        """The convolutions of some images, where each has its own."""
        several = self.weight.ndim == 3, self.bias.ndim == 2
        return Linear1x1(*(x[begin:end] if s else x for x, s in zip(self, several)))

    def of(self, index: int) -> "Linear1x1":
        """The convolution of one image: (K, C) and (K,)."""
        weight = self.weight if self.weight.ndim == 2 else self.weight[index]
        return Linear1x1(weight, self.bias if self.bias.ndim == 1 else self.bias[index])


def initial_logit_scale(temperature: float = 0.07) -> Tensor:
    """Log of an inverse temperature; CLIP's first is 1 / 0.07 (Radford et al., 2021).

    Raises:
        ValueError: it is below 0.01, beyond the limit of the scale.
    """
    if not temperature >= 0.01:
        raise ValueError(f"a temperature is 0.01 at least, got {temperature}")
    return torch.tensor(math.log(1 / temperature))


class TextClassifier(nn.Module):
    """``exp(logit_scale) * <e, t> + bias``, for an embedding e and a class's vector t.

    The inverse temperature is CLIP's (Radford et al., 2021, section 2.5): learnable,
    from 1 / ``temperature``, at most 100. As there, the parameter itself is clamped in
    training, so that its gradient does not vanish beyond the limit.

    Args:
        embed_dims: dimension D; needed by ``background``.
        num_biases: learnable biases, one for each feature level; 0 for none.
        level_scales: each of these levels has a temperature of its own, too.
        adapter: config of :class:`ClassFiLM`; None leaves the vectors as they are.
        learn_scale: whether the temperature is learnt.
        background: a learnable vector beside the classes, whose logit comes last
            (ViLD, Gu et al., 2021, section 3.2).
        temperature: the first one.
        centred: take from all vectors the mean of those of the first training step,
            and give them unit length again. The names of LVIS have a cosine of 0.74 to
            one another in CLIP ViT-B/32: what all words share says nothing of an
            object, and hides what they differ by (as Mu and Viswanath, 2018, found of
            word vectors). The mean is part of a checkpoint. Needs ``embed_dims``.

    Raises:
        ValueError: ``background`` or ``centred`` without ``embed_dims``.

    Example:
        >>> import torch
        >>> from kdeov_mm.models.text_classifier import TextClassifier, TextEmbeds
        >>> embeds, text = torch.eye(3)[:1], TextEmbeds(torch.eye(3))
        >>> TextClassifier()(embeds, text).round(decimals=2)
        tensor([[14.2900,  0.0000,  0.0000]], grad_fn=<RoundBackward1>)
    """

    logit_scale: Tensor
    bias: Any
    centre: Tensor | None

    def __init__(
        self,
        embed_dims: int = 0,
        num_biases: int = 0,
        level_scales: bool = False,
        adapter: dict[str, Any] | None = None,
        learn_scale: bool = True,
        background: bool = False,
        temperature: float = 0.07,
        centred: bool = False,
    ) -> None:
        super().__init__()
        for name, asked in (("background", background), ("centred", centred)):
            if asked and embed_dims < 1:
                raise ValueError(f"{name} needs embed_dims, the dimension of the text")
        scale = initial_logit_scale(temperature)
        if level_scales:
            scale = scale.repeat(num_biases)
        if learn_scale:
            self.logit_scale = nn.Parameter(scale)
        else:
            self.register_buffer("logit_scale", scale)
        self.bias = nn.Parameter(torch.zeros(num_biases)) if num_biases else None
        self.adapter = MODELS.build(adapter) if adapter else None
        self.background = (
            nn.Parameter(F.normalize(torch.randn(embed_dims), dim=0))
            if background
            else None
        )
        # zeros until the first step of a training
        self.register_buffer("centre", torch.zeros(embed_dims) if centred else None)
        self.centre_known = False
        self.register_load_state_dict_post_hook(_look_at_centre)

    def centre_vectors(self, vectors: Tensor) -> Tensor:
        """Vectors (W, D), or what is left of them without what all words share.

        Raises:
            ValueError: a training that begins with fewer than 20 words.
        """
        if self.centre is None:
            return vectors
        if self.training and not self.centre_known:
            if len(vectors) < ENOUGH:
                raise ValueError(
                    f"centred=True takes the mean of the first step's words, {ENOUGH} "
                    f"at least, and there are {len(vectors)}: start from a checkpoint "
                    "that has a mean, or set centred=False"
                )
            # the same for all processes
            mean = vectors.detach().mean(0)
            broadcast(mean)
            self.centre.copy_(mean)
            self.centre_known = True
        return F.normalize(vectors - self.centre.to(vectors.dtype), dim=-1)

    def scale(self) -> Tensor:
        """The inverse temperature, at most 100: a scalar, or (L,) of the levels."""
        # the parameter itself, since a clamp of the value alone has no gradient beyond;
        # by `data`, since a step may read it several times before its backward pass
        if self.training and self.logit_scale.requires_grad:
            self.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            return self.logit_scale.exp()
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def forward(self, embeds: Tensor, text: TextEmbeds) -> Tensor:
        """Embeddings (N, D) and K classes -> logits (N, K), or (N, K + 1) with a
        background, which comes last; no bias of a level is added."""
        # all words, then the best word of each class
        weight, offset = self._weight(text.vectors)
        logits = embeds @ weight.T + offset
        if text.owner is not None:
            logits = max_over_synonyms(logits, text.owner)
        if self.background is None:
            return logits
        # the background competes as one more class
        unit = F.normalize(self.background, dim=0)
        return torch.cat([logits, self.scale() * (embeds @ unit)[:, None]], 1)

    def layers(self, vectors: Tensor) -> list[Linear1x1]:
        """Vectors (W, D) -> for each level the 1x1 convolution of embeddings."""
        if self.bias is None:
            raise ValueError("a classifier of levels needs num_biases, one for each")
        # the words of all levels, a bias for each; of levels that share a temperature
        # one kernel
        weights, offset = self._weight(vectors)
        # len() would fix the number of words in an exported graph
        biases = (offset + self.bias[:, None]).expand(-1, vectors.shape[0])
        if weights.ndim == 2:
            return [Linear1x1(weights, bias) for bias in biases]
        return [Linear1x1(weight, bias) for weight, bias in zip(weights, biases)]

    def _weight(self, vectors: Tensor) -> tuple[Tensor, Tensor | float]:
        """What embeddings are multiplied by (W, D), and what is added (W,).

        Of levels with temperatures of their own, (L, W, D) and (L, W).
        """
        scale = self.scale()[..., None]
        vectors = self.centre_vectors(vectors)
        if self.adapter is None:
            return scale[..., None] * vectors, 0.0
        # FiLM of the embedding is another vector and a bias for each word
        adapted, offset = self.adapter(vectors)
        return scale[..., None] * adapted, scale * offset


def _look_at_centre(classifier: Any, *_: Any) -> None:
    """Whether weights that were loaded have the mean of a training's words."""
    if classifier.centre is not None:
        classifier.centre_known = bool(classifier.centre.any())


def max_over_synonyms(
    logits: Tensor, owner: Tensor, num_classes: int | None = None
) -> Tensor:
    """The best logit of each class's words.

    Args:
        logits: (B, W, ...).
        owner: (W,) the class of each word, in order.
        num_classes: K, where it is known; saves a look at ``owner``.

    Returns:
        (B, K, ...)
    """
    # the class of each logit, as a map of indices; the number of classes is static
    index = owner.view(-1, *[1] * (logits.ndim - 2)).expand_as(logits)
    number = int(owner[-1]) + 1 if num_classes is None else num_classes
    shape = (logits.shape[0], number, *logits.shape[2:])
    return logits.new_empty(shape).scatter_reduce(
        1, index, logits, "amax", include_self=False
    )


def rename_old_keys(state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read the parameters of a text classifier from a checkpoint of version 0.1.0.

    A pre-hook for ``load_state_dict`` of the module that holds the ``classifier``.
    """
    # the parameters were those of the head itself
    names = {"log_scale": "logit_scale", "bias": "bias"}
    for key in [k for k in state if k.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name in names:
            state[f"{prefix}classifier.{names[name]}"] = state.pop(key)
        elif name.startswith("adapter."):
            state[f"{prefix}classifier.{name}"] = state.pop(key)
