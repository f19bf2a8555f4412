"""The recall of proposals, of a stand-in whose proposals are known."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from kdeov_mm.models import RegionEmbeds

from ..conftest import ROOT, load_tool

SCALE = 2  # of the input to the image


@pytest.mark.parametrize(
    "rank, shares", [(0, [1, 1, 1]), (50, [0, 1, 1]), (200, [0, 0, 1]), (350, [0] * 3)]
)
def test_an_object_counts_from_the_rank_of_its_proposal(
    rank: int,
    shares: list[int],
    load_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools/studies"))  # as when it is run
    cfg = load_config("../vild/vild_r18_shapes.py", clip=False)
    data = cfg.test_dataloader.dataset
    (resize,) = [step for step in data.pipeline if step.type == "Resize"]
    resize.scale = (160 * SCALE, 160 * SCALE)
    with open(f"{data.data_root}{data.ann_file}") as file:
        annotations = json.load(file)["annotations"]

    def rate(inputs: Tensor, samples: list[Any]) -> RegionEmbeds:
        """All objects of an image, behind `rank` proposals of nothing."""
        boxes, scores = (
            torch.zeros(len(samples), 400, 4),
            torch.zeros(len(samples), 400),
        )
        for i, sample in enumerate(samples):
            its = [a["bbox"] for a in annotations if a["image_id"] == sample.img_id]
            found = torch.tensor(its)
            found[:, 2:] += found[:, :2]
            scores[i, : len(its)] = 0.5
            boxes[i, : len(its)] = found * SCALE
            scores[i, len(its) : len(its) + rank] = 0.9
        return RegionEmbeds(None, boxes, scores, None)

    model = SimpleNamespace(data_preprocessor=lambda data, _: data, rate_regions=rate)
    lines = load_tool("measure_proposals").recalls(cfg, model)
    assert f"all ({len(annotations)} objects)" in lines[0]
    wanted = [f"{s:.3f} of {n}" for s, n in zip(shares, (10, 100, 300))]
    for line in lines:
        if "(0 objects)" not in line:
            assert line.split(": ")[1] == ", ".join(wanted)
