"""Training data whose order and augmentation depend on seed and position alone."""

import itertools
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATA_SAMPLERS, DATASETS
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

ORDER, SAMPLE, STEP = range(3)  # what random numbers are for


def seed_from(*key: int) -> None:
    """Seed Python, numpy and torch (on all devices) from a few numbers, none below 0.

    Example:
        >>> seed_from(STEP, 0, 800)
        >>> first = torch.rand(2)
        >>> seed_from(STEP, 0, 800)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(state.tobytes())
    np.random.seed(state)
    torch.manual_seed(int.from_bytes(state[:2].tobytes(), "little"))


class SeededIndex(int):
    """An index of a data set, with the key of its sample's random numbers."""

    key: tuple[int, ...]


@DATASETS.register_module()
class SeededDataset:
    """A data set, each sample of which has random numbers of its own.

    The pipeline, and whatever wrappers are inside, draw them from the generators of
    Python, numpy and torch, which are seeded by the sample's :class:`SeededIndex`. So
    a sample does not depend on the worker that makes it, nor on those before it.

    Args:
        dataset: the data set, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, SeededIndex):
            seed_from(*index.key)
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        # what Python and torch look for is not the inner one's to answer
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # what hooks change (a pipeline) is the inner one's
        if name == "dataset":
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler[int]):
    """All images in a new random order in each epoch, from any position.

    The samples of all W ranks are one sequence: rank r takes the positions r, r + W,
    and so on. Position p is in epoch ``p // N`` of N images. The order of an epoch is a
    function of seed and epoch, so that no earlier one has to be drawn.

    Args:
        dataset: of N images.
        shuffle: in a random order, else in that of the data set.
        seed: the same on all ranks; None: drawn.

    Attributes:
        start: samples of this rank that are left out, before the others without end;
            ``ResumableTrainLoop`` sets it.
        epoch: where a loop by epochs sets it: only this epoch's samples.
    """

    def __init__(
        self, dataset: Sized, shuffle: bool = True, seed: int | None = None
    ) -> None:
        self.size = len(dataset)
        self.rank, self.world_size = get_dist_info()
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.start: int | None = None
        self.epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is next; mmengine calls it. Not used where ``start`` is set."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # without end, or one epoch's part of the same sequence
        start, end = self.start or 0, None
        if self.start is None and self.epoch is not None:
            start, end = self.epoch * len(self), len(self)
        first = start * self.world_size + self.rank
        positions = itertools.count(first, self.world_size)
        epoch, order = -1, np.arange(self.size)
        for position in itertools.islice(positions, end):
            if self.shuffle and position // self.size != epoch:
                epoch = position // self.size
                order = self._order(epoch)
            index = SeededIndex(order[position % self.size])
            index.key = (SAMPLE, self.seed, position)
            yield index

    def __len__(self) -> int:
        """Samples of this rank in an epoch."""
        return -(-self.size // self.world_size)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((ORDER, self.seed, epoch)).permutation(self.size)
