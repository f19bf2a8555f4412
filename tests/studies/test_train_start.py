"""The start of the hard world's students: what it learns of, and that it fits them."""

import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from kdeov_mm.datasets.shapes_hard import WORLD_HARD
from kdeov_mm.evaluation.leaks import training_record
from kdeov_mm.models.pretrained import load_pretrained, read_weights

from ..conftest import ROOT, load_tool

CONFIG = ROOT / "configs/kdeov/kdeov_n_shapes_hard.py"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_tool("train_start")


def test_only_objects_of_base_classes_are_cut_out(tool):
    words = WORLD_HARD.groups["base"]
    patches, labels = tool.collect(6, words)
    assert patches.dtype == torch.uint8 and len(patches) == len(labels) > 20
    assert labels.max() < len(words)
    # a scene of words that are not asked for gives nothing
    few, own = tool.collect(6, words[:40])
    assert len(few) == len(own)
    assert torch.equal(own, labels[labels < 40])


def test_a_start_is_trained_and_fits_the_students_backbone(tool, monkeypatch, tmp_path):
    target = tmp_path / "start.pth"
    options = ["--scenes", "4", "--steps", "2", "--batch", "8", "--out", str(target)]
    monkeypatch.setattr(sys, "argv", ["train_start.py", *options])
    tool.main()
    cfg = Config.fromfile(CONFIG).model.backbone
    shipped = cfg.init_cfg.checkpoint
    for file in (target, ROOT / shipped):
        backbone = MODELS.build({**cfg, "init_cfg": None})
        # refuses what is missing or has another shape
        load_pretrained(backbone, "backbone", dict(checkpoint=str(file)))
        assert all(bool(v.isfinite().all()) for v in backbone.state_dict().values())
        # the leak report of a student knows that it saw no novel class
        record = training_record(read_weights(str(file)))
        assert record["labels"] == [*WORLD_HARD.groups["base"]]
        assert not record["undeclared"] and not record["unclear"]
