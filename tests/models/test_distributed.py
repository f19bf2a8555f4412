"""Two processes learn what one learns of the joint batch."""

from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from kdeov_mm.models import KDEOVDetector

from ..conftest import EMBED_DIMS, WORDS, detector_of, make_sample, run_two_processes

PROJECTION = dict(
    type="GlobalProjection",
    in_channels=[256, 512, 1024],
    embed_dims=EMBED_DIMS,
    widen_factor=0.25,
)
DISTANCES = {
    name.lower(): dict(type=f"{name}Distance")
    for name in ("Cosine", "L1", "Relational", "Contrastive")
}
REGION = dict(type="RegionDistillation", distances=DISTANCES)
LEARNERS: dict[str, dict[str, Any]] = {
    "default": {},
    "all of them": {
        "distill": dict(
            region=REGION,
            dense=dict(
                type="DenseDistillation", distances=DISTANCES, window=32, points=10**6
            ),
            attention=dict(type="AttentionDistillation", distances=DISTANCES),
        ),
        "global_head": dict(
            type="GlobalHead",
            projection=PROJECTION,
            distances=DISTANCES,
            contrast=dict(type="InfoNCE"),
        ),
    },
    "means of regions": {
        "global_head": dict(
            type="GlobalHead",
            projection=PROJECTION,
            distances=DISTANCES,
            target="regions",
            sources=("truth",),
        ),
    },
    "unsupervised": {"bbox_head.supervised": False},
    "unsupervised, of whole images": {
        "bbox_head.supervised": False,
        "distill": None,
        "fusion": dict(
            type="FiLMFusion",
            in_channels=[256, 512, 1024],
            widen_factor=0.25,
            text_dims=EMBED_DIMS,
        ),
        "global_head": dict(
            type="GlobalHead", projection=PROJECTION, distances=DISTANCES
        ),
    },
    "a global head that learns nothing": {
        "global_head": dict(type="GlobalHead", projection=PROJECTION)
    },
}
PROCESS = """
import sys
import torch
import torch.distributed as dist
from kdeov_mm.models import TextClassifier
from tests.models.test_distributed import LEARNERS, make_batch, make_model, step, train
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
folder, clip = sys.argv[1:]
mine = slice(2 * rank, 2 * rank + 2)
found = {}
for name in LEARNERS:
    model, (images, samples) = make_model(clip, name), make_batch()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    found[name] = step(model, ddp, images[mine], samples[mine])
model = make_model(clip, "default")
ddp = torch.nn.parallel.DistributedDataParallel(model)
found["losses"] = train(model, ddp, images[mine], samples[mine])
torch.manual_seed(rank)  # other words in each process
classifier = TextClassifier(8, centred=True).train()
classifier.centre_vectors(torch.randn(30, 8) + 1)
found["centre"] = classifier.centre
torch.save(found, f"{folder}/{rank}.pt")
"""


def make_batch() -> tuple[Tensor, list[DetDataSample]]:
    """Four images, whose objects are unevenly divided; the third has none."""
    torch.manual_seed(5)
    boxes = [
        [[8, 8, 40, 48], [30, 20, 62, 50], [0, 0, 20, 30]],
        [[4, 30, 50, 60]],
        [],
        [[10, 10, 30, 30], [8, 8, 40, 48]],
    ]
    samples = [
        make_sample(its, range(len(its)), caption=WORDS[i])
        for i, its in enumerate(boxes)
    ]
    return torch.rand(4, 3, 64, 64), samples


def step(
    model: KDEOVDetector, wrapper: nn.Module, images: Tensor, samples: list[Any]
) -> dict[str, dict[str, Any]]:
    """Losses, gradients, and the weights after a step of the optimizer, twice."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(2):  # parameters without a gradient are missed in the second
        optimizer.zero_grad()
        losses = wrapper(images, samples, mode="loss")
        sum(losses.values()).backward()
        learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        grads = {n: p.grad.clone() for n, p in learning.items()}
        optimizer.step()
    losses = {name: value.item() for name, value in losses.items()}
    return dict(losses=losses, grads=grads, weights=model.state_dict())


def train(
    model: KDEOVDetector, wrapper: nn.Module, images: Tensor, samples: list[Any]
) -> list[dict[str, float]]:
    """Losses of 20 steps, their gradients cut as in a training.

    The steps are short: with longer ones, which location is given an object changes
    with a digit of rounding, in one process as in two.
    """
    optimizer, history = torch.optim.SGD(model.parameters(), 2e-6), []
    for _ in range(20):
        optimizer.zero_grad()
        losses = wrapper(images, samples, mode="loss")
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history


def make_model(clip: str, name: str) -> KDEOVDetector:
    """All words in each step, norms that do not depend on the batch."""
    words = {"vocabulary.size": 6, "vocabulary.min_size": 6}
    model = detector_of(clip, **words, **LEARNERS[name]).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


@pytest.fixture(scope="module")
def found(tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What :func:`step` gives in each of two processes, by the name of the learner."""
    folder = tmp_path_factory.mktemp("processes")
    run_two_processes(PROCESS, folder, tiny_clip)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def near(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by a thousandth of their size."""
    one, other = one.float(), other.float()  # counters among the weights
    return bool((one - other).norm() <= 1e-3 * other.norm() + 1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_two_processes_do_what_one_does_with_the_joint_batch(
    tiny_clip: str, found: list[Any], name: str
) -> None:
    """Losses, gradients and weights; the statistics of the norms are fixed."""
    model = make_model(tiny_clip, name)
    wanted = step(model, model, *make_batch())
    # gradients and weights are those of the joint batch
    assert wanted["grads"] and sum(g.abs().sum() for g in wanted["grads"].values()) > 0
    for process in found:
        for part in ("grads", "weights"):
            given = process[name][part]
            assert [k for k, v in wanted[part].items() if not near(given[k], v)] == []
    # and so is the mean of the losses
    first, second = (process[name]["losses"] for process in found)
    means = {key: (value + second[key]) / 2 for key, value in first.items()}
    assert means == pytest.approx(wanted["losses"], rel=1e-3, abs=1e-5)


def test_twenty_steps_of_two_processes_are_those_of_one(
    tiny_clip: str, found: list[Any]
) -> None:
    model = make_model(tiny_clip, "default")
    wanted = train(model, model, *make_batch())
    assert wanted[-1]["loss_cls"] < 0.5 * wanted[0]["loss_cls"]
    pairs = zip(*(process["losses"] for process in found))
    for losses, (one, other) in zip(wanted, pairs, strict=True):
        means = {key: (value + other[key]) / 2 for key, value in one.items()}
        assert means == pytest.approx(losses, rel=1e-5)


def test_centred_words_have_the_same_mean_in_all_processes(found: list[Any]) -> None:
    one, other = (process["centre"] for process in found)
    assert one.any() and torch.equal(one, other)
