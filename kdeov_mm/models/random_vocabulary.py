"""Which words a training step is about."""

import copy

import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList

from ..vocabulary import Words
from .student import words_of_sample


class RandomVocabulary:
    """Words of a training step: those with boxes, and random others.

    The number, the choice and the order of the words change from step to
    step, so the student learns to answer for each word by itself. Words are
    matched by name, so samples of different data sets can share a batch: a
    word that is not in a sample's own vocabulary is not verified there and
    does not count in its class loss. Of synonyms one is drawn for the step.

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

    def __call__(self, samples: SampleList) -> tuple[tuple[Words, ...], SampleList]:
        """Draw words; return them and samples whose labels index them.

        The given samples are not changed. Random numbers are numpy's global
        ones, which mmengine seeds.
        """
        # one word for each class of each data set
        classes = [words_of_sample(sample) for sample in samples]
        drawn = {entry: _draw(entry) for entries in classes for entry in entries}
        own = [[drawn[entry] for entry in entries] for entries in classes]
        asked = {word: None for words in own for word in words}
        present = {
            words[i]: None
            for words, s in zip(own, samples)
            for i in s.gt_instances.labels.tolist()
        }
        # those with boxes, and random others, in random order
        others = [word for word in asked if word not in present]
        size = np.random.randint(self.min_size, self.size + 1)
        extra = min(max(size - len(present), 0), len(others))
        words = [*present, *np.random.permutation(others)[:extra].tolist()]
        words = [words[i] for i in np.random.permutation(len(words))]
        if not words:
            raise ValueError("the samples of this batch name no words at all")
        relabelled = [_relabel(s, o, words) for s, o in zip(samples, own)]
        return tuple((word,) for word in words), relabelled


def _draw(entry: Words) -> str:
    """The only word, or one of the synonyms."""
    return entry[np.random.randint(len(entry))] if len(entry) > 1 else entry[0]


def _relabel(sample: DetDataSample, own: list[str], words: list[str]) -> DetDataSample:
    """A copy whose labels, of its own words, index ``words``, with ``verified``."""
    # from the sample's own classes to the words of the step
    index = {word: i for i, word in enumerate(words)}
    relabelled = sample.new()  # copy.copy shares the set of metainfo keys
    instances = copy.copy(sample.gt_instances)
    instances.labels = instances.labels.new_tensor(
        [index[own[i]] for i in instances.labels.tolist()]
    )
    relabelled.gt_instances = instances
    # words of other data sets in the batch
    known = set(own)
    if not known.issuperset(words):
        relabelled.set_metainfo(
            dict(verified=torch.tensor([word in known for word in words]))
        )
    return relabelled
