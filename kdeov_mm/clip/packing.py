"""Many short sentences read by CLIP's text tower as few long ones."""

import copy
from collections.abc import Iterator
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

PACK = 512  # tokens that are read together


def is_causal(tower: Any) -> bool:
    """Whether a token's embedding depends on it and those before it alone."""
    return (
        isinstance(tower, open_clip.CLIP)
        and tower.attn_mask is not None
        and getattr(tower, "text_pool_type", None) == "argmax"
    )


def sentence_layout(tokens: Tensor) -> tuple[int, ...]:
    """How sentences (N, context) lie in a packed sequence: what decides its shapes.

    Returns:
        The tokens at the beginning that all of them share, and the length of each.
    """
    # the end of a sentence has the highest token number
    lengths = (tokens.argmax(1) + 1).tolist()
    # the end at least is not shared
    same = (tokens == tokens[:1]).all(0).long().cumprod(0)
    return min(int(same.sum()), min(lengths) - 1), *lengths


def packed(tower: Any, tokens: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Join the sentences of each row into one sequence, without their padding.

    The attention of CLIP's text tower is causal. So the padding behind a sentence's
    end, most of its 77 tokens, does not change its embedding, and a beginning that all
    sentences share ("a photo of a") needs to be read only once. An attention mask and
    position embeddings of their own keep the sentences apart.

    Args:
        tower: a CLIP.
        tokens: (K, N, context): K rows of N sentences, all rows of the
            :func:`sentence_layout` of the first.

    Yields:
        A tower with the same weights; tokens (K, S) of some sentences, in order; which
        of them end one, (n,).
    """
    shared, *lengths = sentence_layout(tokens[0])
    first = 0
    while first < len(lengths):
        # as many sentences as fit into a sequence
        last, total = first, shared
        while last < len(lengths) and (last == first or total < PACK):
            total += lengths[last] - shared
            last += 1
        own = torch.tensor(lengths[first:last]) - shared
        ends = shared + own.cumsum(0) - 1
        # (S,): the sentence of each token, -1 of those that are shared; its position
        member = torch.arange(len(own)).repeat_interleave(own)
        member = torch.cat([torch.full((shared,), -1), member])
        order = torch.arange(total)
        starts = torch.cat([ends - own + 1, torch.zeros(1, dtype=torch.long)])
        position = order - starts[member] + shared * (member >= 0)
        text = tokens[:, first + member.clamp(min=0), position]
        # a token attends to the shared ones and to earlier ones of its sentence
        seen = (member == -1) | (member == member[:, None])
        hidden = ~(seen & (order <= order[:, None]))
        yield _reader(tower, position, hidden), text, ends
        first = last


def _reader(tower: Any, position: Tensor, hidden: Tensor) -> Any:
    """A tower of the same weights, with these positions (S,) and this mask (S, S)."""
    reader = copy.copy(tower)
    reader.text_pool_type = "none"
    embedding = tower.positional_embedding
    weights = dict(tower._parameters)
    weights["positional_embedding"] = nn.Parameter(
        embedding[position.to(embedding.device)]
    )
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    reader._parameters = weights
    reader._buffers = {**tower._buffers, "attn_mask": mask.to(tower.attn_mask)}
    return reader
