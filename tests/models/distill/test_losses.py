"""InfoNCE and contrast among regions: hand-computed, laws, two processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm.models import (
    ContrastiveDistance,
    InfoNCE,
    RelationalDistance,
    WordDistance,
)
from kdeov_mm.models.distill.losses import Anchors
from kdeov_mm.models.text_classifier import TextClassifier, initial_logit_scale

from ...conftest import run_two_processes


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


SCALE = initial_logit_scale().exp()


def test_info_nce_by_hand() -> None:
    """Two pairs, cosine 1 within and 0.9 across, at temperature 0.07."""
    pairs = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5]])
    right, wrong = (math.log1p(math.exp(sign * 0.1 / 0.07)) for sign in (-1, 1))
    assert InfoNCE(loss_weight=2.0)(pairs, pairs, SCALE).item() == pytest.approx(
        2 * right
    )
    assert InfoNCE()(pairs, pairs.flip(0), SCALE).item() == pytest.approx(wrong)


def test_info_nce_is_the_cross_entropy_of_clip() -> None:
    images, captions = unit(6, 8), unit(6, 8)
    logits, own = images @ captions.T / 0.07, torch.arange(6)
    clip = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(InfoNCE()(images, captions, SCALE), clip)


def test_images_with_the_same_caption_are_no_negatives() -> None:
    captions = unit(3, 8)[[0, 1, 2, 0]]
    images = captions.clone().requires_grad_()
    loss = InfoNCE()(images, captions, SCALE)
    assert loss < 0.05  # with negatives of equal captions: at least log(2) / 2
    loss.backward()
    apart = (images.grad @ captions[0]).abs()
    assert apart[[0, 3]].max() < 1e-2


def test_info_nce_does_not_see_the_order_of_the_batch() -> None:
    images, captions, order = unit(5, 8), unit(5, 8), torch.randperm(5)
    torch.testing.assert_close(
        InfoNCE()(images, captions, SCALE),
        InfoNCE()(images[order], captions[order], SCALE),
    )


def test_the_temperature_starts_at_clips_and_learns() -> None:
    classifier = TextClassifier()
    assert classifier.scale().item() == pytest.approx(1 / 0.07)
    InfoNCE()(unit(4, 8), unit(4, 8), classifier.scale()).backward()
    assert classifier.logit_scale.grad.abs() > 0


PROCESS = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F
dist.init_process_group("gloo")
import kdeov_mm
from kdeov_mm.models import InfoNCE
from kdeov_mm.models.text_classifier import initial_logit_scale
torch.manual_seed(0)
data, weight = torch.randn(6, 5), torch.randn(5, 8)
captions = F.normalize(torch.randn(6, 8), dim=-1)
captions[5] = captions[0]  # equal, in two processes
layer = torch.nn.Linear(5, 8, bias=False)
layer.weight.data.copy_(weight.T)
class Run(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = layer
        self.logit_scale = torch.nn.Parameter(initial_logit_scale())
    def forward(self, x, y):
        images = F.normalize(self.layer(x), dim=-1)
        return InfoNCE()(images, y, self.logit_scale.exp())
mine = slice(dist.get_rank() * 3, dist.get_rank() * 3 + 3)
run = torch.nn.parallel.DistributedDataParallel(Run())
loss = run(data[mine], captions[mine])
loss.backward()
torch.save([loss.detach(), layer.weight.grad, run.module.logit_scale.grad],
           f"{sys.argv[1]}/{dist.get_rank()}.pt")
"""


def test_two_processes_give_the_loss_and_gradients_of_the_joint_batch(
    tmp_path: Path,
) -> None:
    run_two_processes(PROCESS, tmp_path)
    torch.manual_seed(0)
    data, weight = torch.randn(6, 5), torch.randn(5, 8)
    captions = F.normalize(torch.randn(6, 8), dim=-1)
    captions[5] = captions[0]
    kernel = weight.T.clone().requires_grad_()
    logit_scale = initial_logit_scale().requires_grad_()
    loss = InfoNCE()(F.normalize(data @ kernel.T, dim=-1), captions, logit_scale.exp())
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for got, wanted in zip(
            found, (loss.detach(), kernel.grad, logit_scale.grad), strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_the_contrast_of_equal_embeddings_is_small_and_of_swapped_ones_large() -> None:
    teacher = torch.eye(4)
    distance = ContrastiveDistance()
    assert distance(teacher * 3, teacher).max() < 1e-4
    assert distance(teacher.roll(1, 0), teacher).min() > 10


def test_locations_of_one_region_are_no_negatives_of_each_other() -> None:
    teacher = torch.eye(4)[[0, 0, 0, 1]]
    assert ContrastiveDistance()(teacher, teacher).max() < 1e-4


def test_relations_count_a_region_as_often_as_it_has_locations() -> None:
    """As KL over all rows, one by one."""
    teacher, student = unit(5, 8)[[0, 0, 1, 2, 2, 2, 3, 4]], torch.randn(8, 8)
    said = (F.normalize(student, dim=-1) @ teacher.T / 0.05).log_softmax(-1)
    wanted = (teacher @ teacher.T / 0.05).softmax(-1)
    slow = F.kl_div(said, wanted, reduction="none").sum(-1)
    torch.testing.assert_close(
        RelationalDistance()(student, teacher), slow, rtol=1e-4, atol=1e-5
    )


def test_distributions_over_words_by_hand() -> None:
    student, teacher, text = 3 * unit(4, 8), unit(4, 8), unit(5, 8)
    anchors = Anchors(teacher, torch.ones(4), torch.arange(4), text)
    said = (F.normalize(student, dim=-1) @ text.T / 0.1).log_softmax(-1)
    wanted = (teacher @ text.T / 0.1).softmax(-1)
    slow = F.kl_div(said, wanted, reduction="none").sum(-1)
    distance = WordDistance(temperature=0.1)
    torch.testing.assert_close(distance(student, teacher, anchors), slow)
    # what no word says is not learnt: directions beside all of them
    aside = unit(4, 8) @ torch.linalg.qr(text.T, "complete")[0][:, 5:]
    beside = teacher + aside @ torch.linalg.qr(text.T, "complete")[0][:, 5:].T
    length = beside.norm(dim=-1, keepdim=True)
    alike = distance(beside, beside / length, anchors)
    torch.testing.assert_close(alike, torch.zeros(4), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="has none"):
        distance(student, teacher)


LEARNT = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F
dist.init_process_group("gloo")
import kdeov_mm
from kdeov_mm.models import ContrastiveDistance
torch.manual_seed(0)
students, teachers = torch.randn(4, 8), torch.randn(4, 5)
project = torch.nn.Linear(5, 8, bias=False)
project.weight.data.copy_(torch.randn(8, 5))
distance = ContrastiveDistance(same=2.0)
rank, split = dist.get_rank(), int(sys.argv[2])
mine = slice(0, split) if rank == 0 else slice(split, 4)
targets = F.normalize(project(teachers[mine]), dim=-1)
if not len(targets):
    targets = targets.detach()  # as of a student that asked its teacher nothing
loss = distance(students[mine].requires_grad_(), targets).sum()
(loss + 0 * project.weight.sum()).backward()
dist.all_reduce(project.weight.grad)
torch.save(project.weight.grad, f"{sys.argv[1]}/{rank}.pt")
"""


@pytest.mark.parametrize("split", [2, 4])
def test_learnt_targets_have_the_gradient_of_the_joint_batch(
    split: int, tmp_path: Path
) -> None:
    """Also where one of two processes has none: it takes part, and nothing waits."""
    run_two_processes(LEARNT, tmp_path, str(split))
    torch.manual_seed(0)
    students, teachers = torch.randn(4, 8), torch.randn(4, 5)
    project = torch.nn.Linear(5, 8, bias=False)
    project.weight.data.copy_(torch.randn(8, 5))
    targets = F.normalize(project(teachers), dim=-1)
    ContrastiveDistance(same=2.0)(students, targets).sum().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, project.weight.grad, rtol=1e-4, atol=1e-5)
