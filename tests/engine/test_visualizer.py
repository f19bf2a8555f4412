"""Drawings of tools/test.py: names that can be read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from kdeov_mm.engine import NamesVisualizer


def drawn(tmp_path: Path, name: str, side: int = 120) -> np.ndarray:
    """A gray image with one box, drawn and read again."""
    sample = DetDataSample()
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[0.1, 0.25, 0.9, 0.9]]) * side,
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
    )
    visualizer = NamesVisualizer()
    visualizer.dataset_meta = dict(classes=(name,), palette=[(220, 60, 20)])
    image, file = np.full((side, side, 3), 90, np.uint8), str(tmp_path / "a.png")
    visualizer.add_datasample(
        "a", image, sample, draw_gt=False, out_file=file, pred_score_thr=0.3
    )
    # the sample is as it was
    assert sample.pred_instances.bboxes[0, 0] == 0.1 * side
    return cv2.imread(file)


def test_small_images_grow_and_large_ones_stay(tmp_path: Path) -> None:
    small, large = (drawn(tmp_path, "cat", side) for side in (120, 900))
    assert small.shape[:2] == (800, 800) and large.shape[:2] == (900, 900)
    # the box lies where it did
    for image in (small, large):
        column = np.abs(image[:, image.shape[1] // 2].astype(int) - 90).sum(1) > 60
        assert abs(np.flatnonzero(column)[-1] / len(image) - 0.9) < 0.01


@pytest.mark.parametrize(
    "names",
    [
        ("\U000dfff0", "\U000dfff1"),  # no font has them
        ("дом", "сон"),
        ("$5 note $", "$6 note $"),  # no formulas
    ],
)
def test_names_stay_different(
    names: tuple[str, str], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    first, second = (drawn(tmp_path, name) for name in names)
    assert (first != second).any()
    # matplotlib draws an empty box, and warns
    assert not [w for w in recwarn if "missing from" in str(w.message)]
