"""The order of the training data, and the random numbers of each sample."""

import itertools
import pickle
import random
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.dataset import BaseDataset, pseudo_collate
from torch.utils.data import DataLoader

from kdeov_mm.datasets import ResumableSampler, SeededDataset
from kdeov_mm.datasets.sampler import SAMPLE, STEP, SeededIndex, seed_from

CALLS: list[int] = []


@TRANSFORMS.register_module()
class Dice:
    """Throws three dice; every third sample of the data set fails, at random."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        CALLS.append(results["number"])
        if results["number"] % 3 == 0 and random.random() < 0.7:
            return None
        dice = random.random(), float(np.random.rand()), float(torch.rand(()))
        return dict(number=results["number"], dice=dice)


@DATASETS.register_module()
class Numbers(BaseDataset):
    """As many samples as asked for, with the dice as their pipeline."""

    METAINFO = dict(classes=("odd", "even"))

    def __init__(self, count: int = 10) -> None:
        self.count = count
        super().__init__(pipeline=[dict(type="Dice")])

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(number=i) for i in range(self.count)]

    def get_cat_ids(self, idx: int) -> list[int]:
        return [int(idx < 2)]


@pytest.fixture(autouse=True)
def forget() -> None:
    CALLS.clear()


def sampler(size: int, start: int = 0, **options: Any) -> ResumableSampler:
    made = ResumableSampler(range(size), **{"seed": 0, **options})
    made.start = start
    return made


def first(count: int, endless: Any) -> list[Any]:
    return list(itertools.islice(endless, count))


# ------------------------------------------------------------------------ order


def test_an_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    drawn = np.reshape(first(4 * 50, sampler(50)), (4, 50))
    assert (np.sort(drawn, 1) == np.arange(50)).all()
    assert len({tuple(order) for order in drawn}) == 4
    assert first(50, sampler(50, seed=1)) != drawn[0].tolist()
    assert first(7, sampler(3, shuffle=False)) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("start", [0, 1, 49, 50, 51, 173])
def test_it_begins_at_any_position_as_if_the_earlier_ones_had_been_drawn(
    start: int,
) -> None:
    whole = first(300, sampler(50))[start:]
    rest = first(300 - start, sampler(50, start))
    assert rest == whole and [i.key for i in rest] == [i.key for i in whole]


def test_ranks_share_the_samples_of_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joint = first(3 * 40, sampler(50))
    for rank in range(3):
        where = "kdeov_mm.datasets.sampler.get_dist_info"
        monkeypatch.setattr(where, lambda rank=rank: (rank, 3))
        for start in (0, 33):
            drawn = first(40 - start, sampler(50, start))
            assert drawn == joint[rank::3][start:]
            assert [i.key for i in drawn] == [i.key for i in joint[rank::3][start:]]


def test_other_loops_get_it_an_epoch_at_a_time() -> None:
    """mmengine's loops by epochs would never end the first one otherwise."""
    endless = first(30, sampler(10))
    made = sampler(10)
    made.start = None
    assert first(30, made) == endless  # as mmengine's InfiniteSampler
    for epoch in range(3):
        made.set_epoch(epoch)
        assert [*made] == endless[10 * epoch : 10 * epoch + 10]


def test_to_begin_far_on_takes_no_longer() -> None:
    def seconds(start: int) -> float:
        begin = time.perf_counter()
        first(16, sampler(100_000, start))
        return time.perf_counter() - begin

    near, far = (min(seconds(start) for _ in range(5)) for start in (10, 10**9))
    assert far < 3 * near + 0.01


# --------------------------------------------------------------- random numbers


def indices(positions: Iterator[int] | range, size: int, seed: int = 0) -> Any:
    for position in positions:
        index = SeededIndex(position * 7 % size)
        index.key = (SAMPLE, seed, position)
        yield index


WRAPPED: list[Any] = [
    dict(type="Numbers"),
    dict(type="ClassBalancedDataset", oversample_thr=0.9, dataset=dict(type="Numbers")),
    dict(type="ConcatDataset", datasets=[dict(type="Numbers"), dict(type="Numbers")]),
    dict(type="RepeatDataset", times=3, dataset=dict(type="Numbers")),
]


@pytest.mark.parametrize("config", WRAPPED, ids=lambda config: config["type"])
def test_a_sample_depends_on_its_position_alone(config: dict[str, Any]) -> None:
    data = SeededDataset(config)
    data.full_init()
    places = list(indices(range(40), len(data)))
    samples = [data[index] for index in places]
    assert len(CALLS) > 40  # some failed, and others, drawn at random, replaced them
    order = np.random.permutation(40)
    assert [data[places[i]] for i in order] == [samples[i] for i in order]
    # all different, and another seed's are others
    assert len({sample["dice"] for sample in samples}) == 40
    others = [data[index] for index in indices(range(40), len(data), seed=1)]
    assert not {s["dice"] for s in samples} & {s["dice"] for s in others}


@pytest.mark.parametrize("start", [0, 5])
def test_workers_make_the_samples_of_the_main_process(start: int) -> None:
    def batches(workers: int) -> list[Any]:
        data = SeededDataset(Numbers())
        loader = DataLoader(
            data, 4, sampler=sampler(10, start), num_workers=workers,
            collate_fn=pseudo_collate,
        )  # fmt: skip
        return first(6, loader)

    assert batches(0) == batches(2)


def test_the_data_set_answers_as_the_one_inside() -> None:
    inner = Numbers()
    for data in (
        SeededDataset(inner),
        pickle.loads(pickle.dumps(SeededDataset(inner))),
    ):
        assert len(data) == 10 and data.metainfo == inner.metainfo
        assert data.get_cat_ids(1) == [1] and data[1]["number"] == 1
        assert not hasattr(data, "no_such_thing")


def test_numbers_differ_by_seed_step_rank_and_purpose() -> None:
    keys = [
        (what, *key)
        for what in (SAMPLE, STEP)
        for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**33, 1))
    ]
    drawn = []
    for key in keys * 2:
        seed_from(*key)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[: len(keys)] == drawn[len(keys) :]
    for numbers in zip(*drawn[: len(keys)]):
        assert len(set(numbers)) == len(keys)


def test_what_a_hook_changes_is_the_inner_data_sets() -> None:
    """mmdet's PipelineSwitchHook sets ``dataset.pipeline``."""
    inner = SimpleNamespace(pipeline="first")
    seeded = SeededDataset(inner)
    seeded.pipeline = "second"
    assert inner.pipeline == seeded.pipeline == "second"
