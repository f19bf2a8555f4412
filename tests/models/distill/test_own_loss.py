"""A distillation of one's own, as the page on it shows it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdeov_mm.models import KDEOVDetector

from ...conftest import ROOT, make_sample

PAGE = (ROOT / "docs/own_loss.md").read_text()


def test_the_loss_of_the_page_trains_a_detector(
    build_detector: Callable[..., KDEOVDetector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, config = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code.splitlines()) <= 30
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("my_losses")
    settings: dict = {}
    exec(config, settings)
    taught = build_detector(distill=settings["model"]["distill"]).train()
    assert list(taught.distill_heads) == ["mean"]
    sample = make_sample([[8.0, 8, 40, 40]], [0])
    losses = taught(torch.rand(1, 3, 64, 64), [sample], mode="loss")
    assert set(losses) >= {"loss_cls", "loss_bbox", "loss_dfl", "loss_mean_cosine"}
    losses["loss_mean_cosine"].backward()
    projection = taught.bbox_head.head_module.cls_preds[0][-1].project.conv.weight
    assert projection.grad is not None and projection.grad.abs().sum() > 0


def test_a_head_of_ones_own_says_what_it_needs() -> None:
    from kdeov_mm.models import Distillation, Needs

    class Dense(Distillation):
        kind = "dense"
        needs = Needs(dense=True)

    head = Dense(dict(cosine=dict(type="CosineDistance")))
    assert head.needs.dense and not head.needs.crops
    assert head.loss_names == ["loss_dense_cosine"]
