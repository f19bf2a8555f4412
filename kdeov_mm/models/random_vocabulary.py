"""Which words a training step is about."""

import copy
from collections.abc import Sequence

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

    Federated data (LVIS) say which classes are verified in an image:
    ``verified_labels`` in the metainfo, those it has and those it lists as absent.
    The others do not count in its class loss, except for some words that are drawn
    for the step, after Detic's federated loss (Zhou et al., 2022).

    Args:
        size: words of a step, at most; more when more have boxes.
        min_size: words of a step, at least; of fewer than ``size`` words the same
            part, so that their number changes, too.
        federated: words that are drawn to count as absent in federated images, with
            probabilities as ``label_weights`` of the metainfo, the square root of the
            number of training images. A class that an image lists as not exhaustively
            annotated (``not_exhaustive_labels``) does not count there even so.
    """

    def __init__(self, size: int = 80, min_size: int = 40, federated: int = 50) -> None:
        if not 1 <= min_size <= size:
            raise ValueError(
                f"expected 1 <= min_size <= size, got min_size={min_size}, size={size}"
            )
        if federated < 0:
            raise ValueError(f"federated is a number of words, got {federated}")
        self.size = size
        self.min_size = min_size
        self.federated = federated

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
        if not asked:
            raise ValueError("the samples of this batch name no words at all")
        # those with boxes, those that count as absent, and random others: first what
        # a federated image verifies; of few words some are left out
        absent = self._draw_absent(own, samples)
        known = {**present, **dict.fromkeys(absent)}
        listed = _listed(own, samples)
        others = [word for word in asked if word not in known]
        most = min(self.size, len(asked))
        least = max(most * self.min_size // self.size, 1)
        size = np.random.randint(least, most + 1)
        extra = min(max(size - len(known), 0), len(others))
        mixed = np.random.permutation(others).tolist()
        words = [*known, *sorted(mixed, key=lambda word: word not in listed)[:extra]]
        # in random order
        words = [words[i] for i in np.random.permutation(len(words))]
        relabelled = [_relabel(s, o, words, absent) for s, o in zip(samples, own)]
        return tuple((word,) for word in words), relabelled

    def _draw_absent(
        self, own: Sequence[Sequence[str]], samples: SampleList
    ) -> list[str]:
        """Words that federated images are taught as absent, without repetition."""
        weights: dict[str, float] = {}
        for words, sample in zip(own, samples):
            if "verified_labels" in sample:
                shares = sample.metainfo.get("label_weights", [1.0] * len(words))
                weights.update(zip(words, shares))
        chances = np.array([*weights.values()], float)
        number = min(self.federated, int((chances > 0).sum()))
        if not number:
            return []
        chances /= chances.sum()
        return np.random.choice([*weights], number, replace=False, p=chances).tolist()


def _listed(own: Sequence[Sequence[str]], samples: SampleList) -> set[str]:
    """Words that some federated image verifies."""
    return {
        words[label]
        for words, sample in zip(own, samples)
        for label in sample.metainfo.get("verified_labels", ())
    }


def _draw(entry: Words) -> str:
    """The only word, or one of the synonyms."""
    return entry[np.random.randint(len(entry))] if len(entry) > 1 else entry[0]


def _relabel(
    sample: DetDataSample, own: list[str], words: list[str], absent: list[str]
) -> DetDataSample:
    """A copy whose labels, of its own words, index ``words``, with ``verified``.

    Args:
        sample: of one image.
        own: the sample's own words.
        words: of the step.
        absent: words that a federated image is taught as absent.
    """
    # from the sample's own classes to the words of the step
    index = {word: i for i, word in enumerate(words)}
    relabelled = sample.new()  # copy.copy shares the set of metainfo keys
    instances = copy.copy(sample.gt_instances)
    instances.labels = instances.labels.new_tensor(
        [index[own[i]] for i in instances.labels.tolist()]
    )
    relabelled.gt_instances = instances
    # of federated data what is verified in this image, and what was drawn; never
    # words of other data sets in the batch
    known = set(own)
    if "verified_labels" in sample:
        there = {own[i] for i in sample.gt_instances.labels.tolist()}
        unfinished = {own[i] for i in sample.metainfo.get("not_exhaustive_labels", ())}
        drawn = (known & {*absent}) - there - unfinished
        known = {own[i] for i in sample.verified_labels} | drawn
    if not known.issuperset(words):
        relabelled.set_metainfo(
            dict(verified=torch.tensor([word in known for word in words]))
        )
    return relabelled
