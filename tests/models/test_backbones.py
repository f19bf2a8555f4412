"""Other backbones by config alone: they learn, predict, fold and are exported."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from kdeov_mm.inference.export import FixedPadding, export_onnx

from ..conftest import WORDS
from .test_folded import found, said

LEAVES = (
    "backbone_resnet50",
    pytest.param("backbone_efficientnet_b0", marks=pytest.mark.slow),
    "backbone_yolov5_s",
)
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


class Losses(Hook):
    """The total loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        self.values.append(outputs["loss"].item())


def train(cfg: Config, steps: int, folder: Path) -> tuple[Any, list[float]]:
    """The student after some steps, and their losses."""
    cfg.update(work_dir=str(folder), experiment_name=folder.name)
    cfg.train_cfg.max_iters = steps
    cfg.model.test_cfg.score_thr = 0.0  # scores are low after few steps
    cfg.custom_hooks = []  # no moving average of few steps
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner, losses = Runner.from_cfg(cfg), Losses()
    runner.register_hook(losses)
    runner.train()
    model = runner.model.eval()
    model.cfg = cfg
    return model, losses.values


def check(model: Any, file: Path, forms: Sequence[Any]) -> None:
    """It predicts; folded, and exported in some forms, it says the same."""
    (first, _) = found(model, IMAGES, WORDS)
    assert len(first) > 0 and first.scores.isfinite().all()
    for fuse in (False, True):
        folded = model.fold(WORDS, fuse)
        for one, other in zip(said(folded, IMAGES), said(model, IMAGES, WORDS)):
            torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)
    for words in forms:
        export_onnx(model, file, words)  # compares the file with the model


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_backbone_learns_predicts_folds_and_is_exported(
    leaf: str, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config(f"ablations/{leaf}.py")
    cfg.param_scheduler = None
    cfg.optim_wrapper.optimizer.lr = 0.001
    model, losses = train(cfg, 6, tmp_path)
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    # a quarter of a minute each; the others have no layer that is not YOLOv8's
    forms = [WORDS] if leaf == "backbone_efficientnet_b0" else []
    check(model, tmp_path / "a.onnx", forms)


@pytest.mark.slow
@pytest.mark.parametrize("leaf", LEAVES)
def test_thirty_steps_as_the_config_says(
    leaf: str, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    model, losses = train(load_config(f"ablations/{leaf}.py", clip=False), 30, tmp_path)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    check(model, tmp_path / "a.onnx", [WORDS, None])


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_padding_of_an_exported_convolution_is_the_adaptive_one(
    kernel: int, stride: int
) -> None:
    conv = Conv2dAdaptivePadding(3, 4, kernel, (stride, 2), dilation=(1, 2))
    for shape in ((2, 3, 32, 64), (1, 3, 6, 2)):
        images = torch.rand(shape)
        torch.testing.assert_close(FixedPadding(conv)(images), conv(images))
