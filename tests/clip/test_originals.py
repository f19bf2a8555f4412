"""The teacher's crops come from the image before its resize."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor

from kdeov_mm.clip import CLIPImageTeacher, CLIPTextEncoder, LiveBatch
from kdeov_mm.datasets import shapes

from ..conftest import ROOT

SCALES = (1.0, 1.5)
Array = np.ndarray
JITTER = tuple(
    step
    for step in Config.fromfile(
        ROOT / "configs/_base_/datasets/ov_coco.py", lazy_import=False
    ).train_pipeline
    if step.type != "LoadImageFromFile"
)


@pytest.fixture(scope="module")
def teacher() -> CLIPImageTeacher:
    return CLIPImageTeacher("shapes")


@pytest.fixture(scope="module")
def preprocessor() -> DetDataPreprocessor:
    return MODELS.build(
        dict(
            type="DetDataPreprocessor",
            mean=[10.0, 20.0, 30.0],
            std=[100.0, 200.0, 250.0],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        )
    )


def draw(index: int, factor: int = 3) -> tuple[Array, Array, Array]:
    """A scene of the built-in world, enlarged: (H, W, 3) RGB, boxes, labels."""
    scene = shapes.draw_scene(shapes.scene_rng(5, 0, index))
    side = 160 * factor
    image = cv2.resize(scene.image, (side, side), interpolation=cv2.INTER_CUBIC)
    # no square, so that width and height are not taken for each other
    wide = np.full((side, side + 90, 3), 120, np.uint8)
    wide[:, 90:] = image
    return wide, scene.boxes * factor + (90, 0, 90, 0), scene.labels


def run(
    steps: Sequence[dict[str, Any]], image: Array, boxes: Array, labels: Array
) -> dict[str, Any]:
    """An image (H, W, 3) RGB and its boxes through a pipeline, from its file on."""
    instances = [
        dict(bbox=box, bbox_label=label, ignore_flag=0)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
    ]
    results = dict(img=image[..., ::-1].copy(), img_path="a.jpg", instances=instances)
    results |= dict(img_shape=image.shape[:2], ori_shape=image.shape[:2])
    return Compose([TRANSFORMS.build(dict(step)) for step in steps])(results)


def batch(
    teacher: CLIPImageTeacher, preprocessor: Any, items: list[dict[str, Any]]
) -> tuple[LiveBatch, list[DetDataSample]]:
    # a preprocessor changes its samples
    items = [dict(item, data_samples=item["data_samples"].clone()) for item in items]
    data = preprocessor(pseudo_collate(items), True)
    samples = data["data_samples"]
    return teacher.for_batch(data["inputs"], samples, preprocessor), samples


def pixels_of(image: Array) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


def keep(*steps: dict[str, Any]) -> list[dict[str, Any]]:
    """A pipeline with these steps after the image is kept."""
    before = (dict(type="LoadAnnotations", with_bbox=True), dict(type="KeepOriginal"))
    return [*before, *steps, dict(type="PackInputs")]


RESIZE = dict(type="Resize", scale=(111, 93), keep_ratio=False)
FLIP = dict(type="RandomFlip", prob=1.0)
CROP = dict(type="RandomCrop", crop_size=(80, 90), allow_negative_crop=True)


# -------------------------------------------------------- crops of the image itself


@pytest.mark.parametrize(
    "steps",
    [
        keep(),
        keep(RESIZE),
        keep(dict(type="Resize", scale=(800, 800), keep_ratio=True)),
        keep(FLIP),
        keep(RESIZE, dict(FLIP, direction="vertical")),
        keep(dict(FLIP, direction="diagonal"), RESIZE),
        keep(RESIZE, CROP, FLIP, dict(type="Pad", size=(160, 192))),
        keep(dict(CROP, crop_size=(400, 400)), FLIP, RESIZE, CROP),
        [step for step in JITTER if "Crop" not in step["type"]],
        JITTER,
    ],
    ids=lambda steps: "-".join(s["type"] for s in steps if "A" not in s["type"]),
)
def test_a_crop_is_that_of_the_image_itself_whatever_the_pipeline_does(
    steps: list[dict[str, Any]],
    teacher: CLIPImageTeacher,
    preprocessor: DetDataPreprocessor,
) -> None:
    """Resized, cropped and mirrored; objects that it cuts are other boxes."""
    np.random.seed(0)
    compared = 0
    for index in range(4):
        image, boxes, labels = draw(index)
        for own, label in zip(boxes, labels, strict=True):
            item = run(steps, image, own[None], label[None])
            live, (sample,) = batch(teacher, preprocessor, [item])
            instances = sample.gt_instances
            if len(instances) and instances.visible > 0.99:
                assert torch.equal(sample.original.flip(0) / 255, pixels_of(image)[0])
                box = torch.from_numpy(own[None])
                crop = teacher.embed_crops(pixels_of(image), [box], SCALES)
                got = live.crops([instances.bboxes], SCALES)
                assert F.cosine_similarity(got, crop).item() > 1 - 1e-4
                compared += 1
    assert compared > 2


def test_the_teacher_names_objects_under_jitter_as_at_full_size(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    """At the ground truth that RegionDistillation asks about, among 360 words."""
    text = CLIPTextEncoder("shapes")(list(shapes.CLASSES))
    np.random.seed(0)
    full: list[Tensor] = []
    jittered: list[Tensor] = []
    thumbnails: list[Tensor] = []
    for index in range(40):
        image, boxes, labels = draw(index)
        crops = teacher.embed_crops(pixels_of(image), [torch.from_numpy(boxes)], SCALES)
        full.append((crops @ text.T).argmax(1) == torch.from_numpy(labels))
        item = run(JITTER, image, boxes, labels)
        live, (sample,) = batch(teacher, preprocessor, [item])
        asked = sample.gt_instances[sample.gt_instances.visible >= 0.5]
        for rates, source in (
            (jittered, live),
            (thumbnails, live._replace(originals=None)),
        ):
            crops = source.crops([asked.bboxes], SCALES)
            rates.append((crops @ text.T).argmax(1) == asked.labels)
    top1 = torch.cat(full).float().mean()
    assert top1 > 0.97 and len(torch.cat(jittered)) > 100
    assert torch.cat(jittered).float().mean() >= 0.95 * top1
    assert torch.cat(thumbnails).float().mean() < 0.9 * top1


def test_a_crop_at_the_edge_of_the_input_sees_what_the_crop_cut_off(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    image, boxes, labels = draw(0)
    item = run(keep(dict(CROP, crop_size=(200, 200))), image, boxes, labels)
    live, (sample,) = batch(teacher, preprocessor, [item])
    box = torch.tensor([[20.0, 0, 200, 190]])
    x, y = -sample.homography_matrix[:2, 2]
    shifted = box + torch.tensor([x, y, x, y])
    wanted = teacher.embed_crops(pixels_of(image), [shifted], (1.5,))
    torch.testing.assert_close(live.crops([box], (1.5,)), wanted)
    alone = live._replace(originals=None).crops([box], (1.5,))
    assert F.cosine_similarity(alone, wanted).item() < 0.999


# ------------------------------------------------------------ whole images, batches


def test_the_image_is_the_part_that_the_input_shows_unreduced(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    image, boxes, labels = draw(1)
    item = run(keep(RESIZE, CROP, FLIP), image, boxes, labels)
    live, (sample,) = batch(teacher, preprocessor, [item])
    # the window of 80 x 90 px, mirrored, of the image resized to 111 x 93 px
    matrix = sample.homography_matrix
    left = (matrix[0, 2] - 80) / -matrix[0, 0]
    top = -matrix[1, 2] / matrix[1, 1]
    height, width = image.shape[:2]
    right, bottom = left + 80 * width / 111, top + 90 * height / 93
    part = image[round(top) : round(bottom), round(left) : round(right)]
    assert part.shape[0] > 450 and part.shape[1] > 400
    torch.testing.assert_close(live.images(), teacher(pixels_of(part)))
    # padding that img_shape counts is no part of the image
    padded = live._replace(shapes=[(1000, 1000)])
    ends = image[round(top) :, : round(right)]
    torch.testing.assert_close(padded.images(), teacher(pixels_of(ends)))


def test_a_batch_of_different_sizes_is_each_image_alone(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    """And an image without an original is cropped as before, in any company."""
    np.random.seed(0)
    items = []
    for index, factor in enumerate((1, 3, 2, 2)):
        image, boxes, labels = draw(index, factor)
        items.append(run(JITTER if index % 2 else keep(RESIZE), image, boxes, labels))
    plain = [step for step in keep(RESIZE) if step["type"] != "KeepOriginal"]
    items.append(run(plain, *draw(4)))
    live, samples = batch(teacher, preprocessor, items)
    boxes = [sample.gt_instances.bboxes for sample in samples]
    together = live.crops(boxes, SCALES).split(list(map(len, boxes)))
    for i, item in enumerate(items):
        alone, _ = batch(teacher, preprocessor, [item])
        assert (alone.originals is None) == (i == 4)
        torch.testing.assert_close(together[i], alone.crops([boxes[i]], SCALES))
        torch.testing.assert_close(live.images()[i], alone.images()[0])


def test_mirrored_inputs_have_the_same_crops(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    image, boxes, labels = draw(2)
    items = [run(keep(RESIZE, *more), image, boxes, labels) for more in ((), (FLIP,))]
    (plain, (first,)), (mirrored, (second,)) = (
        batch(teacher, preprocessor, [item]) for item in items
    )
    truth, turned = first.gt_instances.bboxes, second.gt_instances.bboxes
    assert not torch.allclose(truth, turned)
    crops = plain.crops([truth], SCALES)
    torch.testing.assert_close(mirrored.crops([turned], SCALES), crops)
    torch.testing.assert_close(plain.mirrored().crops([turned], SCALES), crops)
    torch.testing.assert_close(plain.mirrored().images(), mirrored.images())


def test_dense_maps_are_of_the_input(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    live, _ = batch(teacher, preprocessor, [run(keep(RESIZE, FLIP), *draw(2))])
    torch.testing.assert_close(live.dense(), teacher.embed_dense(live.pixels))


def test_batch_augments_are_refused(
    teacher: CLIPImageTeacher, preprocessor: DetDataPreprocessor
) -> None:
    augments = [dict(type="BatchFixedSizePad", size=(64, 64))]
    other = MODELS.build(
        dict(type="DetDataPreprocessor", bgr_to_rgb=True, batch_augments=augments)
    )
    with pytest.raises(ValueError, match="batch_augments .* KeepOriginal"):
        batch(teacher, other, [run(keep(RESIZE), *draw(0))])
