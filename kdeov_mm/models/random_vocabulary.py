"""Which words are asked in a training step, and in a sample."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor

from ..vocabulary import Words, merge_synonyms


def words_of(samples: SampleList | None) -> tuple[Words, ...]:
    """The vocabulary that all samples of a test batch share.

    Returns:
        K classes: a word, or a tuple of synonyms.

    Raises:
        ValueError: samples without ``text``, or with different words.
    """
    texts = {_words(sample) for sample in samples or []}
    if len(texts) != 1:
        raise ValueError(
            f"a test batch needs one vocabulary, got {len(texts)}; set "
            "metainfo 'text' of every sample to the same tuple of words."
        )
    return texts.pop()


def embed_words(
    text_encoder: Callable[[Sequence[str]], Tensor],
    words: Sequence[Words],
    device: torch.device,
    synonyms: str = "mean",
) -> tuple[Tensor, Tensor | None]:
    """K classes, each a word or synonyms, to vectors.

    Args:
        text_encoder: words -> unit vectors.
        words: K classes.
        device: of the vectors.
        synonyms: ``'mean'``: the direction of their mean, one for each class;
            ``'max'``: all of them.

    Returns:
        (K, D) and None; or of all W synonyms (W, D), and the class of each (W,).
    """
    flat, owner = merge_synonyms(words)
    text = text_encoder(flat).to(device)
    if owner is None:
        return text, None
    owner = owner.to(device)
    if synonyms == "max":
        return text, owner
    total = text.new_zeros(len(words), text.shape[1])
    return F.normalize(total.index_add(0, owner, text), dim=1), None


class RandomVocabulary:
    """Words of a training step: those with boxes, and random others.

    The number, the choice and the order of the words change from step to
    step, so the student learns to answer for each word by itself. Words are
    matched by name, so samples of different data sets can share a batch: a
    word that is not in a sample's own vocabulary is not verified there and
    gets weight 0 in its class loss. Of synonyms one is drawn for the step.

    Args:
        size: words of a step, at most; more when more have boxes.
        min_size: words of a step, at least, where the samples have so many.
    """

    def __init__(self, size: int = 80, min_size: int = 40) -> None:
        if not 1 <= min_size <= size:
            raise ValueError(
                f"expected 1 <= min_size <= size, got min_size={min_size}, size={size}"
            )
        self.size = size
        self.min_size = min_size

    def __call__(
        self, samples: SampleList
    ) -> tuple[tuple[str, ...], list[DetDataSample]]:
        """Draw words; return them and samples whose labels index them.

        The given samples are not changed. Random numbers are numpy's global
        ones, which mmengine seeds.
        """
        drawn = {entry: _draw(entry) for s in samples for entry in _words(s)}
        own = [[drawn[entry] for entry in _words(s)] for s in samples]
        asked = {word: None for words in own for word in words}
        present = {
            words[i]: None
            for words, s in zip(own, samples)
            for i in s.gt_instances.labels.tolist()
        }
        others = [word for word in asked if word not in present]
        size = np.random.randint(self.min_size, self.size + 1)
        extra = min(max(size - len(present), 0), len(others))
        words = [*present, *np.random.permutation(others)[:extra].tolist()]
        words = [words[i] for i in np.random.permutation(len(words))]
        if not words:
            raise ValueError("the samples of this batch name no words at all")
        return tuple(words), [_relabel(s, o, words) for s, o in zip(samples, own)]


def _draw(entry: Words) -> str:
    """A word as it is, or one of synonyms."""
    return entry if isinstance(entry, str) else entry[np.random.randint(len(entry))]


def _relabel(sample: DetDataSample, own: list[str], words: list[str]) -> DetDataSample:
    """A copy whose labels, of its own words, index ``words``, with ``word_weight``."""
    index = {word: i for i, word in enumerate(words)}
    relabelled = sample.new()  # copy.copy shares the set of metainfo keys
    instances = copy.copy(sample.gt_instances)
    instances.labels = instances.labels.new_tensor(
        [index[own[i]] for i in instances.labels.tolist()]
    )
    relabelled.gt_instances = instances
    known = set(own)
    if not known.issuperset(words):
        relabelled.set_metainfo(
            dict(word_weight=torch.tensor([float(word in known) for word in words]))
        )
    return relabelled


def _words(sample: DetDataSample) -> tuple[Words, ...]:
    words = sample.metainfo.get("text")
    if words is None:
        raise ValueError(
            "sample without words: add 'text' to meta_keys of PackDetInputs, "
            "and use OVCocoDataset or the LoadWords transform."
        )
    if isinstance(words, str):
        return (words,)
    return tuple(w if isinstance(w, str) else tuple(w) for w in words)
