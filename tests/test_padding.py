"""One colour pads in training and testing, and nothing reads it as image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from kdeov_mm.clip.teacher import undo_normalisation
from kdeov_mm.models import KDEOVDetector
from kdeov_mm.models.pixels import filled_part

from .conftest import ROOT, WORDS, detector_of, enliven

CONFIGS = (
    *("kdeov/kdeov_n_ovcoco", "kdeov/kdeov_n_ovlvis", "kdeov/kdeov_n_shapes"),
    *("kdeov/kdeov_n_shapes1203", "kdeov/kdeov_n_raccoon", "image_text/r50_coco"),
    "image_text/yolov8_n_shapes",
)
SIZES = ((427, 640), (640, 427), (120, 90), (333, 500))  # height, width


def picture(folder: Path, height: int, width: int, value: int | None = None) -> Path:
    """A JPEG, of noise or of one value."""
    rng = np.random.default_rng(height)
    shape = (height, width, 3)
    pixels = rng.integers(0, 255, shape) if value is None else np.full(shape, value)
    path = folder / f"{height}x{width}-{value}.jpg"
    cv2.imwrite(str(path), pixels.astype(np.uint8))
    return path


def record(path: Path) -> dict[str, Any]:
    """What a data set gives to its pipeline."""
    box = dict(bbox=[5.0, 5, 80, 60], bbox_label=0, ignore_flag=0)
    height, width = cv2.imread(str(path)).shape[:2]
    return dict(
        img_path=str(path),
        img_id=1,
        height=height,
        width=width,
        instances=[box],
        words=tuple((word,) for word in WORDS),
        captions=["a red ball"],
    )


def pipeline_of(loader: Any) -> Compose:
    dataset = loader.dataset
    while "pipeline" not in dataset:  # wrapped, to repeat rare classes
        dataset = dataset.dataset
    for step in dataset.pipeline:
        if step.type == "LoadCaptions":  # the records of this test have captions
            step.ann_file = None
    return Compose(dataset.pipeline)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_and_testing_pad_with_one_colour_that_is_no_image(
    name: str, tmp_path: Path
) -> None:
    cfg = Config.fromfile(ROOT / f"configs/{name}.py", lazy_import=False)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    colours, seen = set(), 0
    for training, loader in (
        (True, cfg.train_dataloader),
        (False, cfg.test_dataloader),
    ):
        pipeline = pipeline_of(loader)
        for seed in range(6):
            np.random.seed(seed)
            paths = [picture(tmp_path, *size, value=255) for size in SIZES]
            packed = [pipeline(record(path)) for path in paths]
            data = preprocessor(pseudo_collate([p for p in packed if p]), training)
            inputs, samples = data["inputs"], data["data_samples"]
            pixels = undo_normalisation(
                preprocessor, inputs, [sample.img_shape for sample in samples]
            )
            filled = filled_part(samples)
            for i, sample in enumerate(samples):
                height, width = sample.img_shape[:2]
                outside = torch.ones(inputs.shape[-2:], dtype=torch.bool)
                outside[:height, :width] = False
                seen += int(outside.sum())
                # padding is of one colour; the teacher sees black there
                colours |= {*inputs[i][:, outside].flatten().tolist()}
                assert not pixels[i][:, outside].any()
                # what is pooled is the image, and a white image is white in it
                part = [n / m for n, m in zip((height, width), inputs.shape[-2:])]
                assert filled[i].tolist() == pytest.approx(part)
                if "RandomAffine" not in str(pipeline):
                    assert pixels[i, :, :height, :width].min() > 0.6
    assert seen and len(colours) == 1


@pytest.fixture(scope="module")
def student(tiny_clip: str) -> KDEOVDetector:
    """Finds many boxes; images of 640 pixels at most, as the recipes' own."""
    model = detector_of(tiny_clip, teacher=None, distill=None)
    return enliven(model)


def boxes_of(
    model: KDEOVDetector, pipeline: Compose, paths: Sequence[Path]
) -> list[InstanceData]:
    """As tools/test.py finds them, in one batch."""
    data = pseudo_collate([pipeline(record(path)) for path in paths])
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(data)]


def same(one: InstanceData, other: InstanceData) -> bool:
    def near(a: Tensor, b: Tensor, atol: float) -> bool:
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=atol)

    return (
        torch.equal(one.labels, other.labels)
        and near(one.scores, other.scores, 1e-5)
        and near(one.bboxes, other.bboxes, 1e-2)
    )


@pytest.mark.parametrize("folded", [False, True], ids=["student", "folded"])
def test_boxes_do_not_depend_on_the_other_images_of_the_batch(
    student: KDEOVDetector, tmp_path: Path, folded: bool
) -> None:
    cfg = Config.fromfile(ROOT / "configs/kdeov/kdeov_n_ovcoco.py", lazy_import=False)
    pipeline = pipeline_of(cfg.test_dataloader)
    paths = [picture(tmp_path, *size) for size in (*SIZES, SIZES[0])]
    model = student.fold(WORDS) if folded else student
    alone = [boxes_of(model, pipeline, [path])[0] for path in paths]
    assert min(map(len, alone)) > 20
    for order in ([0, 1, 2, 3, 4], [2, 0, 3, 1, 4], [1, 1, 0]):
        together = boxes_of(model, pipeline, [paths[i] for i in order])
        assert all(same(found, alone[i]) for found, i in zip(together, order))


def test_an_image_embedding_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    name = "configs/image_text/yolov8_n_shapes.py"
    cfg = Config.fromfile(ROOT / name, lazy_import=False)
    model = MODELS.build(cfg.model).eval()
    pipeline = pipeline_of(cfg.test_dataloader)
    paths = [picture(tmp_path, *size) for size in SIZES]

    def embeds(which: Sequence[Path]) -> list[Tensor]:
        packed = [pipeline({k: v for k, v in record(p).items() if k != "captions"})
                  for p in which]  # fmt: skip
        with torch.no_grad():
            samples = model.test_step(pseudo_collate(packed))
        return [sample.visual_feature for sample in samples]

    for path, together in zip(paths, embeds(paths), strict=True):
        torch.testing.assert_close(together, embeds([path])[0], rtol=0, atol=1e-5)
