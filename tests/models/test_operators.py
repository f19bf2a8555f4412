"""A training step costs a GPU's host the same for every batch, and it hardly waits."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmyolo.models.task_modules.assigners import BatchTaskAlignedAssigner

from kdeov_mm.clip import CLIPImageTeacher
from kdeov_mm.clip import teacher as teacher_module
from kdeov_mm.models import BatchPreprocessor, TaskAligner, words_of

from ..operators import operators_of_step


@pytest.fixture(scope="module")
def demo(load_config: Callable[..., Config]) -> tuple[Any, dict[str, Any]]:
    """The demo's student, teacher and 8 pictures."""
    init_default_scope("mmdet")
    cfg = load_config("kdeov_n_shapes.py", clip=False)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    set_random_seed(0)  # of the pictures' cuts, too
    model = MODELS.build(cfg.model)
    model.init_weights()
    data = pseudo_collate([dataset.prepare_data(i) for i in range(8)])
    # words are embedded once, not in each step
    model.train().embed(words_of(data["data_samples"]))
    return model, data


def test_a_larger_batch_has_hardly_more_operators_and_no_more_stops(
    demo: tuple[Any, dict[str, Any]],
) -> None:
    few, many = (operators_of_step(*demo, times) for times in (1, 4))
    assert many.number < 1.05 * few.number
    assert not few.stops and not many.stops


def test_losses_in_half_precision_are_near_those_of_float32(
    demo: tuple[Any, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher in half precision, too, as on a GPU."""
    model, data = demo
    model.distill_heads["region"].sources = ("truth",)  # own boxes may be others
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        half = dtype != torch.float32
        if half:
            monkeypatch.setattr(teacher_module, "PRECISION", {"cpu": torch.float16})
        set_random_seed(0)  # the words are drawn
        inputs = model.data_preprocessor(copy.deepcopy(data), True)
        with torch.autocast("cpu", dtype, enabled=half):
            losses.append(model.parse_losses(model(**inputs, mode="loss"))[1])
    full, half = losses
    for name, value in full.items():
        assert half[name].isfinite() and half[name].item() == pytest.approx(
            value.item(), rel=0.05
        )


def test_a_teacher_in_half_precision_embeds_the_same_and_is_exact_again(
    tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, images = CLIPImageTeacher(tiny_clip), torch.rand(3, 3, 40, 40)
    exact, dense = teacher(images), teacher.embed_dense(images)
    with monkeypatch.context() as patch:
        patch.setattr(teacher_module, "PRECISION", {"cpu": torch.float16})
        rounded = teacher(images)
        assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, rtol=0, atol=5e-3)
        near = teacher.embed_dense(images)
        torch.testing.assert_close(near, dense, rtol=0, atol=5e-3)
        # nor does the student's precision change it
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(teacher(images), rounded)
    assert torch.equal(teacher(images), exact)


@pytest.mark.parametrize("objects", [0, 1, 7])
def test_targets_are_those_of_mmyolo(objects: int) -> None:
    torch.manual_seed(0)
    arguments = dict(num_classes=6, topk=10, alpha=0.5, beta=6.0, use_ciou=True)
    centres = torch.cartesian_prod(torch.arange(4.0, 64, 8), torch.arange(4.0, 64, 8))
    corner = torch.rand(3, objects, 2) * 40
    truth = torch.cat([corner, corner + 4 + torch.rand(3, objects, 2) * 20], 2)
    exists = (torch.rand(3, objects, 1) < 0.7).float()
    inputs = (
        torch.cat([centres - 9, centres + 9], 1) + torch.randn(3, 64, 4) * 2,
        torch.rand(3, 64, 6),
        torch.cat([centres, torch.full((64, 2), 8.0)], 1),
        torch.randint(0, 6, (3, objects, 1)).float(),
        truth * exists,
        exists,
    )
    ours = TaskAligner(**arguments)(*inputs)
    theirs = BatchTaskAlignedAssigner(**arguments)(*inputs)
    found = theirs["fg_mask_pre_prior"].bool()
    assert torch.equal(ours["fg_mask_pre_prior"], found)
    assert objects < 7 or found.any()
    torch.testing.assert_close(ours["assigned_scores"], theirs["assigned_scores"])
    for key in ("assigned_bboxes", "assigned_labels"):
        torch.testing.assert_close(
            ours[key][found], theirs[key][found], check_dtype=False
        )


@pytest.mark.parametrize("sizes", [[(40, 64)] * 2, [(40, 64), (64, 33)]])
def test_inputs_are_those_of_mmdets_preprocessor(
    sizes: list[tuple[int, int]],
) -> None:
    arguments = dict(mean=[1.0, 2, 3], std=[4.0, 5, 6], bgr_to_rgb=True)
    arguments |= dict(pad_size_divisor=32, pad_value=7)
    data: dict[str, Any] = dict(
        inputs=[torch.randint(0, 256, (3, *s)).byte() for s in sizes],
        data_samples=None,
    )
    theirs = MODELS.build(dict(type="DetDataPreprocessor", **arguments))(dict(data))
    ours = BatchPreprocessor(**arguments)(dict(data))
    assert torch.equal(ours["inputs"], theirs["inputs"])
