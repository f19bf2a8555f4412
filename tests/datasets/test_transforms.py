"""What a pipeline keeps for the teacher, and which steps may follow."""

from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.dataset import Compose

from kdeov_mm.clip.cached_teacher import PIXEL_STEPS
from kdeov_mm.datasets import KeepOriginal, LoadWords, PackInputs
from kdeov_mm.datasets.transforms import LargeScaleJitter, _visible_parts

from ..conftest import ROOT

LOAD = dict(type="LoadAnnotations", with_bbox=True)
KEEP = dict(type="KeepOriginal")
PACK = dict(type="PackInputs")
RESIZE = dict(type="Resize", scale=(64, 48), keep_ratio=False)


BOXES = ([20.0, 10, 60, 50], [100.0, 60, 124, 90])
AREAS = (40.0 * 40, 24.0 * 30)


def run(*steps: dict[str, Any], ignored: int = 0, seed: int = 0) -> Any:
    """The sample of an image of noise with two boxes; some of them are ignored."""
    rng = np.random.default_rng(0)
    instances = [
        dict(bbox=box, bbox_label=i, ignore_flag=int(i < ignored))
        for i, box in enumerate(BOXES)
    ]
    image = rng.integers(256, size=(96, 128, 3), dtype=np.uint8)
    results = dict(img=image, img_path="a.jpg", instances=instances)
    results["img_shape"] = image.shape[:2]
    np.random.seed(seed)
    pipeline = Compose([TRANSFORMS.build(dict(step)) for step in steps])
    return pipeline(results)["data_samples"]


def test_the_image_is_kept_as_it_is_there() -> None:
    erase = dict(type="CutOut", n_holes=5, cutout_shape=(20, 20))  # writes in place
    sample = run(LOAD, RESIZE, KEEP, dict(type="YOLOXHSVRandomAug"), erase, PACK)
    wanted = run(LOAD, RESIZE, KEEP, PACK)
    assert sample.original.dtype == torch.uint8
    assert sample.original.shape == (3, 48, 64)
    assert torch.equal(sample.original, wanted.original)
    # steps before do not count
    assert np.array_equal(sample.homography_matrix, np.eye(3))


@pytest.mark.parametrize("seed", range(4))
def test_the_visible_part_of_an_object_is_known(seed: int) -> None:
    crop = dict(type="RandomCrop", crop_size=(70, 90), allow_negative_crop=True)
    flip = dict(type="RandomFlip", prob=0.5)
    sample = run(LOAD, KEEP, crop, flip, RESIZE, PACK, seed=seed)
    # what is left, in pixels of the original
    boxes = sample.gt_instances.bboxes.tensor
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * (90 / 64) * (70 / 48)
    whole = torch.tensor([AREAS[label] for label in sample.gt_instances.labels])
    torch.testing.assert_close(sample.gt_instances.visible, areas / whole)
    # boxes that are not cut at the border are not visible beyond it
    uncut = run(LOAD, KEEP, crop | dict(bbox_clip_border=False), PACK, seed=seed)
    cut = run(LOAD, KEEP, crop, PACK, seed=seed)
    assert torch.equal(uncut.gt_instances.visible, cut.gt_instances.visible)
    # ignored objects are not among the instances
    all_of_it = run(LOAD, KEEP, RESIZE, PACK, ignored=1).gt_instances.visible
    assert all_of_it.tolist() == pytest.approx([1])


def test_without_it_a_sample_has_nothing_more() -> None:
    sample = run(LOAD, RESIZE, PACK)
    assert "original" not in sample and "homography_matrix" not in sample
    assert "visible" not in sample.gt_instances


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([LOAD, KEEP, dict(type="Rotate", prob=1.0, level=5)], "rotate or shear"),
        ([LOAD, KEEP, dict(type="ShearX", prob=1.0, level=9)], "rotate or shear"),
        ([LOAD, KEEP, dict(type="RandomAffine", max_translate_ratio=0.4)], "moves"),
        ([LOAD, KEEP, dict(type="Expand", prob=1.0, ratio_range=(3, 4))], "moves"),
        ([RESIZE, KEEP, LOAD], "boxes are loaded after"),
        ([LOAD, dict(type="PhotoMetricDistortion"), KEEP], "of uint8, got .* float32"),
    ],
    ids=["Rotate", "ShearX", "RandomAffine", "Expand", "LoadAnnotations", "float"],
)  # fmt: skip
def test_steps_that_do_not_go_with_it_are_refused(
    steps: list[dict[str, Any]], message: str
) -> None:
    """Also those of which mmdet records nothing."""
    with pytest.raises(ValueError, match=message):
        run(*steps, PACK)


def test_nothing_is_kept_at_test_time() -> None:
    """In no config of ours; the COCO and LVIS trainings keep the image."""
    training = set()
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        cfg = Config.fromfile(path, lazy_import=False)
        for loader in ("train", "val", "test"):
            if "KeepOriginal" in str(cfg.get(f"{loader}_dataloader")):
                assert loader == "train", path
                training.add(path.stem)
    pages = (ROOT / "configs").glob("*/*_ov*.py")
    wanted = {path.stem for path in pages if path.parent.name != "_base_"}
    # these test on the same data, and have the trainings of their bases
    pages = (ROOT / "configs/yoloworld").glob("yolo_world_v2_*.py")
    inherited = {path.stem for path in pages if "raccoon" not in path.stem}
    assert training == wanted | inherited and len(wanted) == 13


def test_a_store_knows_it_by_its_repr() -> None:
    assert repr(KeepOriginal()) == repr(KeepOriginal()) == "KeepOriginal()"
    assert "KeepOriginal" in PIXEL_STEPS


def test_a_picture_that_is_no_number_is_refused_by_name() -> None:
    image = np.zeros((8, 8, 3), np.float32)
    image[3, 4] = np.nan
    with pytest.raises(ValueError, match="a.npy has pixels that are no finite"):
        PackInputs()(dict(img=image, img_path="a.npy"))
    assert PackInputs()(dict(img=np.nan_to_num(image)))["inputs"].shape == (3, 8, 8)


def test_every_label_of_a_map_has_a_word() -> None:
    """From -2, what is not labelled, to the last word."""

    def pack(*labels: int) -> Any:
        image, labelled = np.zeros((1, 2, 3), np.uint8), np.array([labels], np.int16)
        more = dict(seg_table=0, gt_seg_map=labelled, words=("a", "b"))
        return PackInputs()(dict(img=image, **more))["data_samples"]

    for good in ((-2, 1), (0, 0), (1, 1), (-2, -2)):
        assert pack(*good).gt_sem_seg.sem_seg.flatten().tolist() == [*good]
    for bad in ((-3, 0), (0, 2), (2, 2), (-3, -3)):
        with pytest.raises(ValueError, match=f"labels {bad[0]} to {bad[1]}, and 2"):
            pack(*bad)


def test_every_label_of_a_box_has_a_word() -> None:
    step = LoadWords(["a", "b"])
    given = dict(instances=[dict(bbox_label=0), dict(bbox_label=1)])
    assert step(given)["words"] == (("a",), ("b",))
    with pytest.raises(ValueError, match="label 2, but LoadWords got 2"):
        step(dict(instances=[dict(bbox_label=2)]))
    for words in ((), "word"):
        with pytest.raises(ValueError, match="a list of words"):
            LoadWords(words)


@pytest.mark.parametrize("entry", [(0, 1), (1, 0), (2, 0), (2, 1)])
def test_each_way_to_turn_an_image_is_refused(entry: tuple[int, int]) -> None:
    results = KeepOriginal()(
        dict(img=np.zeros((8, 8, 3), np.uint8), gt_bboxes=[[1.0, 1, 5, 5]])
    )
    _visible_parts(results)
    results["homography_matrix"][entry] = 1e-3
    with pytest.raises(ValueError, match="rotate or shear"):
        _visible_parts(results)


JITTER = dict(type="LargeScaleJitter", size=64, min_box=2)
MMDETS = (
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.1, 2), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64), allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(2, 2), keep_empty=False),
)


def test_the_jitter_keeps_the_boxes_that_mmdet_keeps() -> None:
    """Each within a pixel of the image, and on average the same."""
    flip = dict(type="RandomFlip", prob=0.5)
    found: list[list[torch.Tensor]] = [[], []]
    for seed in range(200):
        ours = run(LOAD, KEEP, JITTER, flip, PACK, seed=seed)
        mmdets = run(LOAD, KEEP, *MMDETS, flip, PACK, seed=seed)
        assert (ours.img_shape, ours.flip) == (mmdets.img_shape, mmdets.flip)
        boxes = [sample.gt_instances.bboxes.tensor for sample in (ours, mmdets)]
        if len(boxes[0]) == len(boxes[1]):
            # an image that fits is not cut
            allowed = 1e-4 if max(ours.img_shape) < 64 else 1.01
            assert torch.allclose(*boxes, rtol=0, atol=allowed)
        for held, its in zip(found, boxes):
            held.append(its)
    counts = [len(torch.cat(held)) for held in found]
    assert counts[0] == pytest.approx(counts[1], abs=3)
    sides = [
        (boxes[:, 2:] - boxes[:, :2]).mean(0) for boxes in map(torch.cat, found)
    ]  # fmt: skip
    torch.testing.assert_close(*sides, rtol=0.01, atol=0)


def test_boxes_lie_on_their_pixels_after_the_jitter() -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    image[10:50, 20:60] = 255
    instances = [dict(bbox=BOXES[0], bbox_label=0, ignore_flag=0)]
    pipeline = Compose([LOAD, dict(JITTER, colours=dict(type="HSVJitter"))])
    for seed in range(30):
        np.random.seed(seed)
        results = pipeline(dict(img=image, img_shape=(96, 128), instances=instances))
        assert max(results["img_shape"]) <= 64
        for x1, y1, x2, y2 in results["gt_bboxes"].tensor.tolist():
            ys, xs = np.nonzero(results["img"].max(2) > 100)
            seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert seen == pytest.approx((x1, y1, x2, y2), abs=1.2)


@pytest.mark.parametrize("ratio, before", [(2.0, True), (0.5, False)])
def test_colours_change_where_there_are_fewer_pixels(
    ratio: float, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an image is enlarged, after it is made smaller."""
    step = TRANSFORMS.build(
        dict(JITTER, colours=dict(type="HSVJitter"), ratio_range=(ratio, ratio))
    )
    changed: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        step, "colours", lambda r: (changed.append(r["img"].shape), r)[1]
    )
    results = dict(img=np.zeros((64, 48, 3), np.uint8), img_shape=(64, 48))
    results = step.transform(results)
    sizes = [shape[0] for shape in changed] + [results["img"].shape[0]]
    assert sizes[0] < sizes[1] if before else sizes[0] == sizes[1] == 32


def test_what_the_jitter_cannot_do_is_refused() -> None:
    for wrong in (dict(size=0), dict(ratio_range=(0, 1)), dict(min_box=-1)):
        with pytest.raises(ValueError, match="positive factors in order"):
            TRANSFORMS.build({**JITTER, **wrong})
    with pytest.raises(ValueError, match="for label maps"):
        TRANSFORMS.build(JITTER)(dict(img=np.zeros((8, 8, 3)), gt_seg_map=0))


def test_the_jitter_of_colours_is_mmdets() -> None:
    image = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    steps = [TRANSFORMS.build(dict(type=t)) for t in ("HSVJitter", "YOLOXHSVRandomAug")]
    changed = 0
    for seed in range(30):
        results = []
        for step in steps:
            np.random.seed(seed)
            results.append(step(dict(img=image.copy()))["img"])
        if not np.array_equal(results[0], image):  # mmdet's rounds the others
            changed += 1
            assert np.array_equal(*results)
    assert changed > 20


@pytest.mark.parametrize("mirrored", [False, True])
def test_packing_copies_pixels_once_and_words_never(mirrored: bool) -> None:
    image = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    image = image[:, ::-1] if mirrored else image
    words = (("a", "b"), ("c",))
    packed = PackInputs()(dict(img=image, words=words))
    assert np.array_equal(packed["inputs"], image.transpose(2, 0, 1))
    assert packed["inputs"].is_contiguous()
    assert packed["data_samples"].words is words
    assert packed["data_samples"].metainfo["words"] is not None
    # KeepOriginal's planes are handed on as they are
    kept = KeepOriginal()(dict(img=image))
    assert kept["original"].transpose(2, 0, 1).flags.c_contiguous
    assert np.array_equal(kept["original"], image)


@pytest.mark.parametrize("form", ["bitmaps", "polygons"])
def test_masks_are_cut_with_their_boxes(form: str) -> None:
    box, size = [20.0, 30.0, 90.0, 70.0], (120, 160)
    x1, y1, x2, y2 = map(int, box)
    if form == "bitmaps":
        bitmap = np.zeros((1, *size), np.uint8)
        bitmap[0, y1:y2, x1:x2] = 1
        masks: Any = BitmapMasks(bitmap, *size)
    else:
        corners = np.array([x1, y1, x2, y1, x2, y2, x1, y2], float)
        masks = PolygonMasks([[corners]], *size)
    jitter = LargeScaleJitter(128, ratio_range=(0.8, 2.0))
    seen = 0
    for seed in range(12):
        np.random.seed(seed)
        results = jitter(
            dict(
                img=np.zeros((*size, 3), np.uint8),
                gt_bboxes=HorizontalBoxes([box]),
                gt_bboxes_labels=np.array([3]),
                gt_masks=masks,
            )
        )
        assert len(results["gt_masks"]) == len(results["gt_bboxes"])
        if not len(results["gt_bboxes"]):
            continue
        (mask,) = results["gt_masks"].to_ndarray()
        assert mask.shape == results["img_shape"]
        rows, columns = mask.nonzero()
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        (cut,) = results["gt_bboxes"].tensor.tolist()
        assert edges == pytest.approx(cut, abs=2)
        seen += 1
    assert seen > 6
