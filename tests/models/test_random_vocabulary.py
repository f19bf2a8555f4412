"""Which words are asked: in a training step, in a test batch."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample

from kdeov_mm.models import RandomVocabulary, words_of
from kdeov_mm.vocabulary import Words

from ..conftest import WORDS, make_sample

MANY = tuple(f"word {i}" for i in range(200))
BOXES = [[1, 2, 30, 40], [5, 5, 20, 20]]


@pytest.fixture(autouse=True)
def numpy_seed() -> None:
    np.random.seed(0)


def names(words: tuple[Words, ...], sample: DetDataSample) -> list[str]:
    assert all(len(own) == 1 for own in words)
    return [words[i][0] for i in sample.gt_instances.labels]


def flat(words: tuple[Words, ...]) -> list[str]:
    return [word for own in words for word in own]


def test_labels_follow_their_words() -> None:
    samples = [make_sample(BOXES, [150, 3], MANY), make_sample(BOXES[:1], [199], MANY)]
    draw = RandomVocabulary(size=20, min_size=10)
    for _ in range(20):
        words, new = draw(samples)
        assert [names(words, s) for s in new] == [["word 150", "word 3"], ["word 199"]]


def test_boxes_keep_their_place_beside_their_label() -> None:
    words, (new,) = RandomVocabulary(8, 4)([make_sample(BOXES, [5, 1])])
    assert new.gt_instances.bboxes.tolist() == BOXES
    assert names(words, new) == [WORDS[5], WORDS[1]]


def test_the_number_of_words_stays_between_its_bounds_and_varies() -> None:
    draw = RandomVocabulary(size=20, min_size=10)
    sizes = {len(draw([make_sample(BOXES, [7, 8], MANY)])[0]) for _ in range(200)}
    assert sizes == set(range(10, 21))


def test_words_with_boxes_are_always_asked_even_beyond_the_bound() -> None:
    labels = list(range(30))
    sample = make_sample([[0, 0, 9, 9]] * 30, labels, MANY)
    words, (new,) = RandomVocabulary(size=10, min_size=10)([sample])
    assert sorted(flat(words)) == sorted(MANY[:30])
    assert names(words, new) == list(MANY[:30])


def test_fewer_words_than_the_bound_still_vary() -> None:
    """OV-COCO's 48 base words, with the default bounds of 40 and 80."""
    draw = RandomVocabulary(size=80, min_size=40)
    drawn = [draw([make_sample(BOXES, [0, 1], MANY[:48])])[0] for _ in range(200)]
    assert {len(words) for words in drawn} == set(range(24, 49))
    assert all({("word 0",), ("word 1",)} <= {*words} for words in drawn)
    assert len(draw([make_sample(BOXES, [0, 0], ("one",))])[0]) == 1


def test_no_word_is_asked_twice() -> None:
    samples = [make_sample(BOXES, [4, 4], MANY), make_sample(BOXES[:1], [4], MANY)]
    words, _ = RandomVocabulary(size=50, min_size=50)(samples)
    assert len(words) == len(set(words)) == 50


def test_choice_and_order_of_the_words_vary() -> None:
    draw = RandomVocabulary(size=20, min_size=20)
    drawn = [draw([make_sample(BOXES, [7, 8], MANY)])[0] for _ in range(30)]
    assert len({frozenset(words) for words in drawn}) == 30
    assert len({words.index(("word 7",)) for words in drawn}) > 5
    assert len(set().union(*map(flat, drawn))) > 150


def test_the_seed_decides_the_words() -> None:
    draw, sample = RandomVocabulary(20, 10), make_sample(BOXES, [7, 8], MANY)
    np.random.seed(3)
    first = draw([sample])[0]
    second = draw([sample])[0]
    np.random.seed(3)
    assert draw([sample])[0] == first != second


def test_the_given_samples_are_not_changed() -> None:
    sample = make_sample(BOXES, [5, 1])
    other = make_sample(BOXES, [0, 0], ("some", "words"))
    before = copy.deepcopy(sample)
    RandomVocabulary(4, 4)([sample, other])
    assert torch.equal(sample.gt_instances.labels, before.gt_instances.labels)
    assert torch.equal(sample.gt_instances.bboxes, before.gt_instances.bboxes)
    assert sample.metainfo == before.metainfo


def test_one_data_set_verifies_all_words() -> None:
    _, new = RandomVocabulary(4, 4)([make_sample(BOXES, [5, 1]), make_sample()])
    assert not any("verified" in s.metainfo for s in new)


def test_words_of_another_data_set_are_not_verified() -> None:
    cats = make_sample(BOXES[:1], [1], ("cat", "red ball"))
    world = make_sample(BOXES, [0, 2])  # "red ball" is a word of both
    words, new = RandomVocabulary(size=80, min_size=80)([cats, world])
    assert sorted(flat(words)) == sorted({*WORDS, "cat"})
    for sample, own in zip(new, ({"cat", "red ball"}, set(WORDS)), strict=True):
        verified = sample.metainfo["verified"]
        assert verified.dtype == torch.bool
        assert verified.tolist() == [word in own for word in flat(words)]
    assert names(words, new[0]) == ["red ball"]
    assert names(words, new[1]) == [WORDS[0], WORDS[2]]


def test_images_without_boxes_ask_words_too() -> None:
    words, (new,) = RandomVocabulary(4, 4)([make_sample()])
    assert len(words) == 4 and len(new.gt_instances.labels) == 0
    assert new.gt_instances.labels.dtype == torch.long


@pytest.mark.parametrize("size, min_size", [(0, 0), (3, 4), (5, 0)])
def test_impossible_bounds_are_refused(size: int, min_size: int) -> None:
    with pytest.raises(ValueError, match="min_size <= size"):
        RandomVocabulary(size, min_size)


def test_samples_without_words_are_refused_with_advice() -> None:
    sample = make_sample(BOXES, [0, 1])
    sample.set_metainfo(dict(words=None))
    for refuses in (RandomVocabulary(), words_of):
        with pytest.raises(ValueError, match="LoadWords"):
            refuses([sample])
    empty = make_sample()
    empty.set_metainfo(dict(words=()))
    with pytest.raises(ValueError, match="no words at all"):
        RandomVocabulary()([empty])


@pytest.mark.parametrize(
    "words", ["red ball", ("red ball", "blue cube"), ["a", ("b",)]]
)
def test_words_that_are_no_tuples_are_refused_with_advice(words: Any) -> None:
    """A string is a sequence of words too, of one letter each."""
    sample = make_sample(BOXES, [0, 1])
    sample.set_metainfo(dict(words=words))
    for refuses in (RandomVocabulary(), words_of):
        with pytest.raises(ValueError, match="a tuple of words for each class"):
            refuses([sample])


def test_a_test_batch_shares_one_vocabulary() -> None:
    classes = tuple((word,) for word in WORDS)
    assert words_of([make_sample(), make_sample()]) == classes
    assert words_of([make_sample(words=list(WORDS))]) == classes
    with pytest.raises(ValueError, match="got 2"):
        words_of([make_sample(), make_sample(words=WORDS[::-1])])
    with pytest.raises(ValueError, match="got 0"):
        words_of(None)


# ------------------------------------------------------------------- federated data


def federated(**metainfo: Any) -> DetDataSample:
    """Two objects of classes 3 and 8; 20 is verified to be absent."""
    about = dict(verified_labels=(3, 8, 20), label_weights=(1.0,) * 200)
    return make_sample(BOXES, [3, 8], MANY, **(about | metainfo))


def verified_words(words: tuple[Words, ...], sample: DetDataSample) -> set[str]:
    rows = zip(flat(words), sample.verified.tolist(), strict=True)
    return {word for word, known in rows if known}


def test_without_drawn_words_only_verified_ones_count() -> None:
    draw = RandomVocabulary(80, 40, federated=0)
    for _ in range(20):
        words, (new,) = draw([federated()])
        assert verified_words(words, new) == {"word 3", "word 8", "word 20"}
        assert len(words) >= 40


def test_at_most_the_drawn_words_count_as_absent_beside_the_verified() -> None:
    draw = RandomVocabulary(80, 40, federated=10)
    others, own = set(), {"word 3", "word 8", "word 20"}
    for _ in range(50):
        words, (new,) = draw([federated()])
        counted = verified_words(words, new)
        assert own <= counted and 8 <= len(counted - own) <= 10
        others |= counted - own
    assert len(others) > 150


def test_the_draw_follows_the_weights() -> None:
    weights = (0.0,) * 100 + (1.0,) * 50 + (9.0,) * 50
    draw = RandomVocabulary(80, 40, federated=5)
    numbers = np.zeros(200)
    for _ in range(300):
        words, (new,) = draw([federated(label_weights=weights)])
        for word in verified_words(words, new) - {"word 3", "word 8", "word 20"}:
            numbers[int(word.split()[1])] += 1
    assert numbers[:100].sum() == 0
    assert 6 < numbers[150:].sum() / numbers[100:150].sum() < 12


def test_a_class_that_is_not_exhaustively_annotated_is_never_absent() -> None:
    """Neither while it has a box, nor where its boxes were cropped away."""
    about = dict(verified_labels=(8, 20), not_exhaustive_labels=(3, 5))
    draw = RandomVocabulary(200, 200, federated=200)
    words, (new,) = draw([federated(**about)])
    assert len(words) == 200
    counted = verified_words(words, new)
    assert len(counted) == 198 and not counted & {"word 3", "word 5"}


def test_federated_and_other_images_share_a_batch() -> None:
    draw = RandomVocabulary(300, 300, federated=0)
    world = make_sample(BOXES, [0, 2])
    words, (lvis, other) = draw([federated(), world])
    assert verified_words(words, lvis) == {"word 3", "word 8", "word 20"}
    assert verified_words(words, other) == {*WORDS}


def test_what_another_image_of_the_batch_verifies_is_asked_first() -> None:
    many = federated(verified_labels=tuple(range(3, 60)))
    draw = RandomVocabulary(62, 62, federated=0)
    words, _ = draw([many, federated()])
    assert {*MANY[3:60]} <= {*flat(words)}
