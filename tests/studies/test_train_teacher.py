"""The training of the teachers: what it reads, and that it can be interrupted."""

import argparse

import numpy as np
import pytest
import torch

from kdeov_mm.clip import CLIPSource
from kdeov_mm.datasets import shapes

from ..conftest import load_tool

HARD = shapes.WORLD_HARD


@pytest.fixture(scope="module")
def tool():
    return load_tool("train_teacher")


@pytest.fixture(scope="module")
def crops(tool):
    return tool.collect(5, 12, np.random.default_rng(0), HARD)


def options(folder, **others):
    made = dict(batch=60, wholes=3, wrong=0.0, steps=4, lr=1e-3, out=folder)
    return argparse.Namespace(**{**made, **others})


def test_crops_and_whole_scenes_have_captions_of_what_they_show(tool, crops, tmp_path):
    assert len(crops.labels) == len(crops.scenes) == len(crops.patches)
    assert len(crops.wholes) == 12
    batches = tool.Batches(crops, options(tmp_path), np.random.default_rng(0), HARD)
    images, captions = batches(32)
    assert images.shape == (60 + 3, 3, 32, 32) and len(captions) == 63
    assert images.min() >= 0 and images.max() <= 1
    # parts are many boxes of few names: their crops come several times
    shown = [HARD.classes[i] for i in batches.members if i in batches.parts[:-1]]
    assert "wheel" in shown and not any(" " in name for name in shown)
    assert sum("wheel" in caption for caption in captions) >= 2
    # without noise a crop is called by a word of its class, a synonym, or its kind
    said = {batches.noisy(0) for _ in range(60)}
    name = HARD.classes[int(crops.labels[0])]
    assert any(name in caption for caption in said) and len(said) > 5
    # with noise, now and then by that of another object
    noisy = tool.Batches(
        crops, options(tmp_path, wrong=1.0), np.random.default_rng(0), HARD
    )
    assert len({noisy.noisy(0) for _ in range(60)} - said) > 10


def test_an_interrupted_training_ends_with_the_same_weights(
    tool, crops, tmp_path, monkeypatch
):
    monkeypatch.setattr(tool, "SAVED_EVERY", 2)
    found = []
    for name, stops in dict(whole=[False], parts=[True, False]).items():
        (tmp_path / name).mkdir()
        for stop in stops:
            torch.manual_seed(0)
            rng = np.random.default_rng(1)
            model = CLIPSource("shapes").load().train().requires_grad_(True)
            if stop:
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(tool, "save", interrupted(tool.save))
                    tool.train(model, crops, options(tmp_path / name), rng, HARD)
            else:
                tool.train(model, crops, options(tmp_path / name), rng, HARD)
        found.append(model.state_dict())
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def interrupted(save):
    """Save, and end the process as Ctrl-C does."""

    def then_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    return then_stop


def test_accuracy_and_calibration_are_told_by_size(tool):
    """Of answers that are right for one of three small boxes and all large ones."""
    labels, said = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 2, 1, 0, 1])
    cosines = torch.nn.functional.one_hot(said, 3).float()
    views = dict.fromkeys((*tool.VIEWS, "top1_scene"), cosines)
    answers = tool.Answers(labels, torch.tensor([9.0, 9, 9, 99, 99]), views, 100.0)
    small, large = (
        tool.figures(answers, (answers.sides > 50) == big) for big in (0, 1)
    )
    assert small["top1"] == pytest.approx(1 / 3) and large["top1"] == 1
    # it was sure each time
    assert small["confidence"] == pytest.approx(1)
    assert small["ece"] == pytest.approx(2 / 3) and large["ece"] == pytest.approx(0)
    report = dict(objects=3, **small)
    report.update({f"{k}_64_to_128px": v for k, v in dict(objects=2, **large).items()})
    rows = tool.table(report).splitlines()
    assert len(rows) == 4 and len({row.count("|") for row in rows}) == 1
    assert rows[2].startswith("| all | 3 | 0.333 |")
    assert rows[3].startswith("| 64 to 128px | 2 | 1.000 |")
