"""The inferencer and tools/detect.py: any input, any words, results in any form."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

from kdeov_mm import KDEOV
from kdeov_mm.clip import CLIPTextEncoder
from kdeov_mm.inference.api import Query
from kdeov_mm.inference.drawing import Drawings
from kdeov_mm.inference.images import natural_order
from kdeov_mm.inference.inferencer import KDEOVInferencer, _found_ahead
from kdeov_mm.inference.results import Result, to_coco, to_supervision
from kdeov_mm.inference.slices import _starts, predict_in_slices
from kdeov_mm.inference.sources import list_sources
from kdeov_mm.reader import read_image
from kdeov_mm.vocabulary import Vocabulary

from ..conftest import ROOT, WORDS, load_tool, make_sample, run_env
from .test_api import JOINT, assert_same_boxes, save, scene, write_joint
from .test_api import rows as rows_of_api
from .test_images import every_kind, unreadable

PHOTOS = ROOT.parent / "shared/data/photos"
FRAMES = 7
LEAST = 0.8  # a score of which the untrained student has few


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> Path:
    return write_joint(tmp_path_factory.mktemp("joint"), load_config)


@pytest.fixture(scope="module")
def inferencer(checkpoint: Path) -> KDEOVInferencer:
    return KDEOVInferencer(None, checkpoint, "cpu", show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, some in a subfolder; and a file that is none."""
    root = tmp_path_factory.mktemp("folder")
    (root / "more").mkdir()
    (root / "notes.txt").write_text("no image")
    sizes = {"2.png": (60, 80), "10.png": (80, 60), "1.png": (300, 90)}
    sizes |= {"more/a10.png": (60, 80), "more/a9.png": (43, 61)}
    for seed, (name, size) in enumerate(sizes.items()):
        save(scene(*size, seed), root / name)
    return root


NATURAL = ["1.png", "2.png", "10.png", "more/a9.png", "more/a10.png"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12, (96, 64))
    for seed in range(FRAMES):
        writer.write(scene(64, 96, seed))
    writer.release()
    return path


def frames_of(video: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(video)), []
    while True:
        good, frame = capture.read()
        if not good:
            return frames
        frames.append(frame)


def rows(sample: DetDataSample | None, words: Sequence[str] = WORDS) -> Tensor:
    """(n, 6): index in WORDS, box, score, as they come."""
    assert sample is not None
    found = sample.pred_instances
    assert found.label_names == [words[i] for i in found.labels]
    index = torch.tensor([WORDS.index(words[i]) for i in found.labels])
    return torch.cat([index[:, None], found.bboxes, found.scores[:, None]], 1)


def assert_equal(results: Sequence[Result], wanted: Sequence[Result]) -> None:
    assert len(results) == len(wanted) > 0
    for one, other in zip(results, wanted):
        assert_same_boxes(rows(one.sample), rows(other.sample))


# ----------------------------------------------------------------------- models


def test_a_checkpoint_alone_is_as_good_as_with_its_config(
    inferencer: KDEOVInferencer,
    checkpoint: Path,
    load_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    cfg, image = load_config(JOINT), scene(70, 90)
    cfg.model.test_cfg.max_per_img = 10**4
    cfg.dump(tmp_path / "config.py")
    (wanted,) = inferencer.stream(image, WORDS)
    for model in (cfg, tmp_path / "config.py", str(tmp_path / "config.py")):
        other = KDEOVInferencer(model, checkpoint, "cpu")
        (result,) = other.stream(image, WORDS)
        assert torch.equal(rows(result.sample), rows(wanted.sample))


def test_what_cannot_be_loaded_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        KDEOVInferencer(None, tmp_path / "nothing.pth", "cpu")
    with pytest.raises(FileNotFoundError, match="config nothing.py"):
        KDEOVInferencer("nothing.py", checkpoint, "cpu")
    (tmp_path / "damaged.pth").write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged.pth is no checkpoint"):
        KDEOVInferencer(None, tmp_path / "damaged.pth", "cpu")
    with pytest.raises(ValueError, match="a checkpoint, or both; got neither"):
        KDEOVInferencer(device="cpu")


def test_a_model_without_boxes_is_refused_at_once(
    load_config: Callable[..., Config],
) -> None:
    config = load_config(ROOT / "configs/image_text/yolov8_n_shapes.py")
    with pytest.raises(ValueError, match="ImageTextModel finds no boxes"):
        KDEOVInferencer(config, device="cpu")


# --------------------------------------------------------------------- images


def test_inference_equals_the_test_pipeline(inferencer: KDEOVInferencer) -> None:
    """The same image through tools/test.py's data set and through the inferencer."""
    dataset = DATASETS.build(inferencer.cfg.test_dataloader.dataset)
    data = dataset[0]
    words, path = data["data_samples"].words, data["data_samples"].img_path
    with torch.no_grad():
        (wanted,) = inferencer.model.test_step(pseudo_collate([data]))
    (result,) = inferencer.stream(path, words)
    ours, theirs = result.sample.pred_instances, wanted.pred_instances
    assert len(ours) > 10
    torch.testing.assert_close(ours.scores, theirs.scores)
    torch.testing.assert_close(ours.bboxes, theirs.bboxes)
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.label_names == theirs.label_names


def test_boxes_are_those_of_the_api(inferencer: KDEOVInferencer, folder: Path) -> None:
    paths = [folder / name for name in NATURAL]
    nms = inferencer.model.bbox_head.test_cfg.nms.iou_threshold
    wanted = KDEOV(inferencer.model).open_vocabulary_detect(paths, WORDS, 0.3, nms)
    results = [*inferencer.stream(paths, WORDS, batch_size=3, score_threshold=0.3)]
    for result, boxes in zip(results, wanted, strict=True):
        assert_same_boxes(rows(result.sample), rows_of_api(boxes))


def test_every_kind_of_image_is_searched(
    inferencer: KDEOVInferencer, tmp_path: Path
) -> None:
    paths = every_kind(tmp_path, scene(43, 61))
    paths.append(save(scene(3, 6000), tmp_path / "thread.png"))
    results = [*inferencer.stream(paths, WORDS, batch_size=4, score_threshold=0.1)]
    assert [r.path for r in results] == paths
    for result in results:
        assert result.error is None, result.error
        height, width = read_image(result.path).shape[:2]
        assert result.sample.ori_shape == (height, width)
        assert result.sample.img_path == str(result.path)
        boxes = rows(result.sample)[:, 1:5]
        assert boxes.isfinite().all() and (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height]).repeat(2)).all()
    assert sum(len(r.sample.pred_instances) for r in results) > 100


@pytest.mark.parametrize("batch_size", [1, 3])
def test_unreadable_files_are_named_and_the_rest_goes_on(
    inferencer: KDEOVInferencer, tmp_path: Path, batch_size: int
) -> None:
    (tmp_path / "bad").mkdir()
    good = every_kind(tmp_path, scene(43, 61))[:4]
    bad = unreadable(tmp_path / "bad", scene(43, 61))
    paths = [path for pair in zip(bad, good, strict=True) for path in pair]
    paths += [tmp_path / "film.mp4", good[0]]
    paths[-2].write_bytes(b"no video")
    results = [*inferencer.stream(paths, WORDS, batch_size=batch_size)]
    assert [r.path for r in results] == paths
    for result in results:
        if result.path in good:
            assert result.error is None and len(rows(result.sample))
        else:
            assert str(result.path) in result.error and result.sample is None
    answer = inferencer(
        paths,
        WORDS,
        return_vis=True,
        return_datasamples=True,
        pred_score_thr=LEAST,
    )
    assert [d is None for d in answer["visualization"]] == [
        "error" in s for s in answer["predictions"]
    ]


def test_a_batch_says_what_its_images_say(
    inferencer: KDEOVInferencer, folder: Path
) -> None:
    """Images of several sizes, in their order."""
    alone = [*inferencer.stream(folder, WORDS)]
    for batch_size in (2, 32):
        batched = [*inferencer.stream(folder, WORDS, batch_size=batch_size)]
        assert [r.name for r in batched] == [r.name for r in alone] == NATURAL
        assert_equal(batched, alone)


def test_a_folder_is_its_images_in_natural_order(
    inferencer: KDEOVInferencer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [folder / name for name in NATURAL]
    assert [s.path for s in list_sources(folder)] == paths
    assert [s.path for s in list_sources(str(folder / "**/*"))] == paths
    assert [s.name for s in list_sources([folder / "more", *paths[:3]])] == [
        *NATURAL[3:],
        *NATURAL[:3],
    ]
    assert [s.name for s in list_sources(str(folder / "*.png"))] == NATURAL[:3]
    monkeypatch.chdir(folder)
    assert [s.name for s in list_sources("more")] == ["a9.png", "a10.png"]
    assert [s.name for s in list_sources([Path("1.png"), paths[3]])] == [
        "1.png",
        "more/a9.png",
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_names_files_below_its_folder(tmp_path: Path, kind: str) -> None:
    """In its order; a missing one is not looked for, and told when it is its turn."""
    (tmp_path / "a").mkdir()
    save(scene(9, 9), tmp_path / "a/1.png")
    paths = ["gone, or not.png", str(tmp_path / "a/1.png"), "a/1.png"]
    file = tmp_path / f"list.{kind}"

    def write(name: str) -> None:
        table = pandas.DataFrame({"id": range(3), name: paths})
        if kind == "csv":
            table.to_csv(file, index=False)
        else:
            table.to_parquet(file)

    pandas = pytest.importorskip("pandas")
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    write("path")
    names = [(s.name, s.path) for s in list_sources(file)]
    one = ("a/1.png", tmp_path / "a/1.png")
    assert names == [(paths[0], tmp_path / paths[0]), one, one]
    write("file")
    with pytest.raises(ValueError, match=rf"list\.{kind}: expected a column 'path'"):
        list_sources(file)


def test_reading_ahead_changes_nothing(
    inferencer: KDEOVInferencer, folder: Path, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    given = [tmp_path / "bad.png", folder, video, folder / "1.png"]
    ask = dict(words=WORDS, batch_size=2)
    plain = [*inferencer.stream(given, **ask)]
    ahead = [*inferencer.stream(given, threads=2, **ask)]
    assert [r.error is None for r in ahead] == [r.error is None for r in plain]
    assert_equal(ahead[1:], plain[1:])
    # nor does finding ahead, which ends with its user
    taken = _found_ahead(inferencer.stream(given, **ask), 2)
    assert_equal([*islice(taken, 1, None)], plain[1:])
    numbers: Any = iter(range(100))
    some = _found_ahead(numbers, 3)
    assert [next(some), next(some)] == [0, 1]
    some.close()  # type: ignore[attr-defined]
    assert next(numbers) <= 5


def test_numbers_are_sorted_as_numbers() -> None:
    names = ["a1", "a2.jpg", "a10.jpg", "B1", "b/2", "b/10", "1", "٣", "10"]
    paths = natural_order([Path(n) for n in sorted(names)])
    assert [str(p) for p in paths] == [
        *("1", "10", "a1", "a2.jpg", "a10.jpg", "b/2", "b/10", "B1", "٣")
    ]


def test_arrays_are_bgr_and_pil_is_rgb(
    inferencer: KDEOVInferencer, tmp_path: Path
) -> None:
    rgb = scene(60, 80)
    path = save(rgb, tmp_path / "a.png")
    given = [path, rgb[..., ::-1], Image.fromarray(rgb), rgb]
    results = [*inferencer.stream(given, WORDS)]
    assert [r.name for r in results[1:]] == [f"{i:08d}.jpg" for i in (1, 2, 3)]
    for result in results[1:3]:
        assert result.path is None
        assert torch.equal(rows(result.sample), rows(results[0].sample))
    assert rows(results[3].sample).shape != rows(results[0].sample).shape or (
        not torch.equal(rows(results[3].sample), rows(results[0].sample))
    )


def test_a_name_with_a_globs_characters_is_a_file(
    inferencer: KDEOVInferencer, tmp_path: Path
) -> None:
    path = save(scene(40, 40), tmp_path / "a[1].png")
    (result,) = inferencer.stream(str(path), WORDS)
    assert result.path == path and result.error is None


@pytest.mark.parametrize(
    "given, said",
    [
        ("http://x.org/a.jpg", "http://x.org/a.jpg is an address.*download it"),
        ("rtsp://x.org/live", "rtsp://x.org/live is an address"),
        ("nothing.jpg", "no file or folder nothing.jpg"),
        ("no/*.jpg", "glob no/[*].jpg matches no"),
        ("empty", "folder empty has no images"),
        ([], "at least one image"),
        (3.5, "got a float"),
        (None, "got a NoneType"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8, BGR, got \(4, 4, 4\)"),
        (np.zeros((4, 4, 3)), "of float64"),
        (["empty/a.txt", "nothing.jpg"], "nothing.jpg"),
    ],
)
def test_what_is_no_input_is_refused_before_anything_is_done(
    inferencer: KDEOVInferencer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: Any,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty/a.txt").write_text("no image")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        inferencer.stream(given, WORDS)


def test_results_come_one_by_one(inferencer: KDEOVInferencer, tmp_path: Path) -> None:
    paths = [save(scene(40, 50, i), tmp_path / f"{i}.png") for i in range(3)]
    results = inferencer.stream(tmp_path, WORDS)
    assert next(results).path == paths[0]
    paths[1].unlink()
    assert "1.png" in str(next(results).error)
    assert next(results).error is None


# ----------------------------------------------------------------------- videos


def test_a_videos_frames_are_images(inferencer: KDEOVInferencer, video: Path) -> None:
    frames = frames_of(video)
    assert len(frames) == FRAMES
    wanted = [*inferencer.stream(frames, WORDS)]
    results = [*inferencer.stream(video, WORDS, batch_size=3)]
    assert [r.frame for r in results] == [*range(FRAMES)]
    assert results[2].name == "film_000002.jpg"
    assert_equal(results, wanted)
    some = [*inferencer.stream([video, video], WORDS, batch_size=4, every=3)]
    assert [r.frame for r in some] == [0, 3, 6] * 2
    assert_equal(some, wanted[::3] * 2)


@pytest.mark.parametrize("number", [-1, 10**30])
def test_a_camera_has_a_small_number(number: int) -> None:
    """OpenCV crashes on -1 where there is no camera."""
    with pytest.raises(ValueError, match="from 0 to 999"):
        list_sources(number)


def test_a_camera_is_looped_over(
    inferencer: KDEOVInferencer, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, capture = [], cv2.VideoCapture

    def camera(which: int) -> Any:
        opened.append(which)
        return capture(str(video))

    monkeypatch.setattr(cv2, "VideoCapture", camera)
    results = [*islice(inferencer.stream(3, WORDS), 2)]
    assert opened == [3] and [r.frame for r in results] == [0, 1]
    assert results[0].path is None
    with pytest.raises(ValueError, match="camera has no end"):
        inferencer(0, WORDS)


def test_a_film_comes_out_as_a_film(
    inferencer: KDEOVInferencer, video: Path, tmp_path: Path
) -> None:
    inferencer(video, WORDS, every=2, out_dir=tmp_path, pred_score_thr=0.99)
    frames = frames_of(tmp_path / "vis/film.mp4")
    assert len(frames) == 4
    for frame, before in zip(frames, frames_of(video)[::2]):
        assert frame.shape == before.shape
        assert np.abs(frame.astype(int) - before).mean() < 20
    assert cv2.VideoCapture(str(tmp_path / "vis/film.mp4")).get(cv2.CAP_PROP_FPS) == 6
    assert [p.name for p in (tmp_path / "vis").iterdir()] == ["film.mp4"]


def test_half_a_film_is_none(
    inferencer: KDEOVInferencer, video: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), Drawings(tmp_path / "vis") as drawings:
        for result in inferencer.stream(video, WORDS):
            drawings.add(result, inferencer.drawing(result, WORDS))
            raise KeyboardInterrupt
    assert not [*(tmp_path / "vis").iterdir()]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_photos_and_a_real_video(inferencer: KDEOVInferencer) -> None:
    results = inferencer.stream(PHOTOS, WORDS, batch_size=4, score_threshold=0.5)
    sizes = {r.name: r.sample.ori_shape for r in results}
    assert len(sizes) == 5 and sizes["bus.jpg"] == (1080, 810)
    frames = [*inferencer.stream(PHOTOS / "demo.mp4", WORDS, every=20)]
    assert [r.frame for r in frames] == [0, 20, 40, 60]
    assert {r.sample.ori_shape for r in frames} == {(720, 1280)}


# ------------------------------------------------------------------------ words


def test_number_and_order_of_the_words_do_not_change_what_is_found(
    inferencer: KDEOVInferencer,
) -> None:
    image = scene(120, 160)
    (every,) = inferencer.stream(image, WORDS)
    wanted = rows(every.sample)
    assert len(wanted) > 100
    for words in (WORDS[::-1], (WORDS[4],), (WORDS[2], WORDS[0], WORDS[5])):
        (result,) = inferencer.stream(image, words)
        kept = torch.isin(wanted[:, 0], torch.tensor([WORDS.index(w) for w in words]))
        assert_same_boxes(rows(result.sample, words), wanted[kept])


def test_words_come_in_any_form(
    inferencer: KDEOVInferencer, checkpoint: Path, tmp_path: Path
) -> None:
    image = scene(60, 80)
    (wanted,) = inferencer.stream(image, WORDS)
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    (tmp_path / "words.json").write_text(json.dumps(WORDS))
    vocabulary = Vocabulary(WORDS)
    made = vocabulary.embed(inferencer.model.text_encoder)
    made.save(tmp_path / "words.safetensors")
    files = [tmp_path / f"words.{kind}" for kind in ("txt", "json", "safetensors")]
    forms = [[*WORDS], ", ".join(WORDS), vocabulary, made, *files, str(files[0])]
    for words in forms:
        (result,) = inferencer.stream(image, words)
        assert_same_boxes(rows(result.sample), rows(wanted.sample))
        assert inferencer.names(words) == WORDS
    settled = KDEOVInferencer(None, checkpoint, "cpu", words=files[0])
    (result,) = settled.stream(image)
    assert torch.equal(rows(result.sample), rows(wanted.sample))
    (result,) = settled.stream(image, WORDS[:1])
    assert {*result.sample.pred_instances.label_names} == {*WORDS[:1]}


def test_synonyms_have_the_name_of_the_first(inferencer: KDEOVInferencer) -> None:
    words = [WORDS[0], (WORDS[1], "azure cube")]
    (result,) = inferencer.stream(scene(60, 80), words)
    assert {*result.sample.pred_instances.label_names} == {*WORDS[:2]}


def test_vectors_need_no_text_tower_and_words_are_embedded_once(
    inferencer: KDEOVInferencer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    encode = CLIPTextEncoder.encode

    def listen(self: CLIPTextEncoder, words: Sequence[str]) -> Tensor:
        embedded.extend(words)
        return encode(self, words)

    monkeypatch.setattr(CLIPTextEncoder, "encode", listen)
    new = ("a word", "that nobody", "has asked yet")
    images = [scene(40, 60, i) for i in range(3)]
    assert len([*inferencer.stream(images, new)]) == 3
    assert embedded == [*new]
    encoder = inferencer.model.text_encoder
    vectors = dict(zip(("one", "two"), encoder([WORDS[0], WORDS[3]])))
    given = Vocabulary(("one", "two"), vectors=vectors, encoder=encoder.made_by)
    other = KDEOVInferencer(None, checkpoint, "cpu", words=given)
    (result,) = other.stream(images[0])
    (wanted,) = inferencer.stream(images[0], [WORDS[0], WORDS[3]])
    assert embedded == [*new]
    found, theirs = result.sample.pred_instances, wanted.sample.pred_instances
    assert torch.equal(found.scores, theirs.scores)
    assert torch.equal(found.bboxes, theirs.bboxes)
    with pytest.raises(ValueError, match="made by .*another"):
        foreign = Vocabulary(("one",), vectors=vectors, encoder=dict(model="another"))
        KDEOVInferencer(None, checkpoint, "cpu", words=foreign)


@pytest.mark.parametrize(
    "words", [None, "", [], [()], ["cat", "cat"], "cat,,dog", [""]]
)
def test_what_is_no_list_of_words_is_refused(
    inferencer: KDEOVInferencer, words: Any
) -> None:
    with pytest.raises(ValueError, match="word|same names"):
        inferencer.stream(scene(20, 20), words)


@pytest.mark.parametrize(
    "argument",
    [
        dict(batch_size=0),
        dict(every=0),
        dict(slices=0),
        dict(overlap=1.0),
        dict(score_threshold=30),
    ],
)
def test_arguments_out_of_range_are_named(
    inferencer: KDEOVInferencer, argument: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=[*argument][0]):
        inferencer.stream(scene(20, 20), WORDS, **argument)


# ---------------------------------------------------------------------- results


def test_the_answer_and_its_folders_are_mms(
    inferencer: KDEOVInferencer, folder: Path, tmp_path: Path
) -> None:
    save(scene(40, 40), tmp_path / "1.jpg")
    given = [folder, tmp_path / "1.jpg", tmp_path / "1.jpg", scene(900, 70)]
    out = tmp_path / "out"
    answer = inferencer(
        given,
        WORDS,
        4,
        out_dir=out,
        no_save_pred=False,
        return_vis=True,
        pred_score_thr=LEAST,
    )
    results = [*inferencer.stream(given, WORDS)]
    assert len(answer["predictions"]) == len(answer["visualization"]) == 8
    for said, drawn, result in zip(
        answer["predictions"], answer["visualization"], results
    ):
        found = result.sample.pred_instances
        assert {*said} == {"labels", "scores", "bboxes", "label_names"}
        assert len(said["bboxes"]) == len(said["label_names"]) == len(found)
        assert drawn.dtype == np.uint8
        assert max(drawn.shape) == max(800, *result.image.shape)
        written = Drawings(out / "vis").place(result.source)
        assert read_image(written).shape == drawn.shape
    names = [r.source.name for r in results]
    for name, said in zip(names, answer["predictions"]):
        file = (out / "preds" / name).with_suffix(".json")
        assert json.loads(file.read_text())["labels"] == said["labels"]
    again = inferencer(folder, WORDS, return_datasamples=True, no_save_vis=True)
    assert again["visualization"] == []
    for sample, result in zip(again["predictions"], results):
        assert torch.equal(rows(sample), rows(result.sample))


def test_two_files_of_a_name_have_two_results(
    inferencer: KDEOVInferencer, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a/x.jpg", "b/x.jpg", "b/x.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        save(scene(30, 40), path)
    inferencer(paths, WORDS[:1], out_dir=tmp_path / "out", no_save_pred=False)
    written = (p for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in written) == [
        *("preds/a/x.json", "preds/b/x.json", "preds/b/x.png.json"),
        *("vis/a/x.jpg", "vis/b/x.jpg", "vis/b/x.png"),
    ]


def load_coco(content: dict[str, Any], folder: Path) -> COCO:
    (folder / "coco.json").write_text(json.dumps(content))
    with redirect_stdout(io.StringIO()):
        return COCO(str(folder / "coco.json"))


def test_cocos_json_is_loaded_by_pycocotools(
    inferencer: KDEOVInferencer, folder: Path, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    given = [folder, tmp_path / "bad.png", video]
    results = [*inferencer.stream(given, WORDS, every=3, score_threshold=0.5)]
    coco = load_coco(to_coco(results, WORDS), tmp_path)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [*WORDS]
    good = [r for r in results if r.sample is not None]
    images = coco.loadImgs(coco.getImgIds())
    assert [i["file_name"] for i in images] == [r.name for r in good]
    assert [i.get("frame") for i in images] == [None] * 5 + [0, 3, 6]
    number = 0
    for image, result in zip(images, good, strict=True):
        assert (image["height"], image["width"]) == result.image.shape[:2]
        boxes = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        number += len(boxes)
        found = result.sample.pred_instances
        xywh = torch.tensor([b["bbox"] for b in boxes])
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        torch.testing.assert_close(xyxy, found.bboxes, atol=2e-3, rtol=0)
        scores = torch.tensor([b["score"] for b in boxes])
        torch.testing.assert_close(scores, found.scores, atol=1e-6, rtol=0)
        assert [b["category_id"] - 1 for b in boxes] == found.labels.tolist()
        for box in boxes:
            assert box["iscrowd"] == 0
            assert box["area"] == pytest.approx(
                box["bbox"][2] * box["bbox"][3], abs=0.01
            )
    assert number == len(coco.anns) > 50


def test_nothing_found_is_a_whole_file_of_coco(
    inferencer: KDEOVInferencer, tmp_path: Path
) -> None:
    results = inferencer.stream(scene(30, 30), WORDS, score_threshold=1.0)
    coco = load_coco(to_coco(results, WORDS), tmp_path)
    assert len(coco.imgs) == 1 and not coco.anns and len(coco.cats) == len(WORDS)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_supervision_says_what_the_sample_says(
    inferencer: KDEOVInferencer, threshold: float
) -> None:
    pytest.importorskip("supervision")
    (result,) = inferencer.stream(scene(60, 80), WORDS, score_threshold=threshold)
    found, boxes = to_supervision(result.sample), result.sample.pred_instances
    assert len(found) == len(boxes) and found.xyxy.shape == (len(boxes), 4)
    assert np.array_equal(found.xyxy, boxes.bboxes.numpy())
    assert np.array_equal(found.confidence, boxes.scores.numpy())
    assert found.class_id.tolist() == boxes.labels.tolist()
    assert found.data["class_name"].tolist() == boxes.label_names


def test_without_supervision_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(make_sample())


# ----------------------------------------------------------------------- slices


class Squares:
    """A student that knows bright squares, a twentieth of the image at least."""

    query = Query((), None, Config(dict(nms=dict(iou_threshold=0.5))), 0.0)

    def predict(self, images: Sequence[np.ndarray], *_: Any) -> list[DetDataSample]:
        return [self._look(image) for image in images]

    def _look(self, image: np.ndarray) -> DetDataSample:
        sample = make_sample(shape=image.shape[:2])
        _, _, about, _ = cv2.connectedComponentsWithStats(image[..., 0])
        boxes = [b[:4] for b in about[1:] if max(b[2:4]) >= max(image.shape) / 20]
        corners = torch.tensor(np.array(boxes).reshape(-1, 4)).float()
        corners[:, 2:] += corners[:, :2]
        seen = [image[int(y), int(x), 1] for x, y, *_ in corners.tolist()]
        sample.pred_instances = InstanceData(
            bboxes=corners,
            scores=torch.full((len(corners),), 0.9),
            labels=torch.tensor(seen, dtype=torch.long),
            label_names=[WORDS[i] for i in seen],
        )
        return sample


def squares(number: int, sizes: Sequence[int], seed: int) -> tuple[np.ndarray, Tensor]:
    """An image (600, 900, 3), and the boxes on it, that keep apart."""
    rng, image = np.random.default_rng(seed), np.zeros((600, 900, 3), np.uint8)
    boxes: list[list[int]] = []
    while len(boxes) < number:
        size = int(rng.choice(sizes))
        x, y = int(rng.integers(900 - size)), int(rng.integers(600 - size))
        if not image[max(y - 2, 0) : y + size + 2, max(x - 2, 0) : x + size + 2].any():
            image[y : y + size, x : x + size] = (255, len(boxes) % 6, 0)
            boxes.append([x, y, x + size, y + size])
    return image, torch.tensor(boxes).float()


@pytest.mark.parametrize("side", [100, 128, 250])
@pytest.mark.parametrize("seed", range(3))
def test_slices_find_each_object_once(side: int, seed: int) -> None:
    """Small ones in the tiles, large ones in the whole image; borders cut none."""
    overlap = 0.4
    small = [side // 18, int(overlap * side) - 2 * side // 64 - 4]
    image, boxes = squares(20, [*small, 200], seed)
    student: Any = Squares()
    (whole,) = student.predict([image])
    sample = predict_in_slices(student, image, student.query, side, overlap)
    found = sample.pred_instances
    assert len(whole.pred_instances) < len(found) == len(boxes)
    order = bbox_overlaps(boxes, found.bboxes).argmax(1)
    assert torch.equal(found.bboxes[order], boxes)
    assert found.labels[order].tolist() == [i % 6 for i in range(20)]
    assert found.label_names == [WORDS[i] for i in found.labels]
    assert sample.ori_shape == image.shape[:2]


@pytest.mark.parametrize("length", [1, 99, 100, 101, 180, 181, 1000, 4321])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.95])
def test_tiles_cover_and_overlap(length: int, overlap: float) -> None:
    starts = _starts(length, 100, overlap)
    assert starts[0] == 0 and starts[-1] == max(length - 100, 0)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= 100 * (1 - overlap) + 1).all()
    assert len(starts) <= max(length - 100, 0) / (100 * (1 - overlap)) + 2


def test_an_image_no_larger_than_a_slice_is_searched_whole(
    inferencer: KDEOVInferencer,
) -> None:
    image = scene(100, 140)
    (wanted,) = inferencer.stream(image, WORDS)
    (result,) = inferencer.stream(image, WORDS, slices=140)
    assert torch.equal(rows(result.sample), rows(wanted.sample))


def test_slices_of_a_large_image(inferencer: KDEOVInferencer) -> None:
    """Every box is one of the whole image or of a tile, shifted; none twice."""
    image = scene(200, 300)
    ask = dict(score_threshold=0.4, batch_size=4)
    (result,) = inferencer.stream(image, WORDS, slices=160, **ask)
    corners = [(x, y) for y in (0, 40) for x in (0, 70, 140)]
    views = [image[y : y + 160, x : x + 160] for x, y in corners]
    parts = [rows(r.sample) for r in inferencer.stream([image, *views], WORDS, **ask)]
    for (x, y), part in zip(corners, parts[1:]):
        part[:, 1:5] += torch.tensor([x, y, x, y])
    found = rows(result.sample)
    assert torch.cdist(found, torch.cat(parts), p=torch.inf).amin(1).max() < 1e-2
    assert len(found) > len(parts[0])
    assert (found[:, -1].diff() <= 0).all()
    for label in range(len(WORDS)):
        own = found[found[:, 0] == label, 1:5]
        threshold = inferencer.model.bbox_head.test_cfg.nms.iou_threshold
        assert bbox_overlaps(own, own).triu(1).max() <= threshold + 1e-4


# -------------------------------------------------------------- tools/detect.py


@pytest.fixture
def detect(checkpoint: Path, tmp_path: Path) -> Callable[..., int]:
    """The tool with the checkpoint, words and --out; returns its exit code."""
    tool = load_tool("detect")

    def run(*arguments: Any, words: str = ", ".join(WORDS)) -> int:
        given = [checkpoint, "--threshold", LEAST, *arguments, "--words", words]
        given += ["--out", tmp_path / "out"]
        try:
            return tool.main([str(a) for a in given])
        except SystemExit as stop:  # argparse's
            return int(str(stop.code))

    return run


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "detections.json").read_text())


def test_detect_writes_cocos_json_and_drawings(
    detect: Callable[..., int],
    inferencer: KDEOVInferencer,
    folder: Path,
    video: Path,
    tmp_path: Path,
) -> None:
    assert detect(folder, video, folder / "1.png", "--every", 3) == 0
    given = [folder, video]
    results = inferencer.stream(given, WORDS, score_threshold=LEAST, every=3)
    wanted = to_coco(results, WORDS)
    said = content(tmp_path / "out")
    assert said["images"] == wanted["images"]
    assert said["categories"] == wanted["categories"]
    assert len(said["annotations"]) == len(wanted["annotations"]) > 5
    load_coco(said, tmp_path)
    vis = tmp_path / "out/vis"
    names = [i["file_name"] for i in said["images"] if "frame" not in i]
    assert all(read_image(vis / name).max() for name in names)
    assert len(frames_of(next(vis.rglob("film.mp4")))) == 3


def test_detect_says_what_could_not_be_read(
    detect: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    given = (folder, tmp_path / "bad.png", "--no-drawings")
    for _ in range(2):
        assert detect(*given) == 1
        assert len(content(tmp_path / "out")["images"]) == 5
        assert "could not be read: " in capsys.readouterr().err
    save(scene(40, 50), tmp_path / "bad.png")
    assert detect(*given) == 0
    assert len(content(tmp_path / "out")["images"]) == 6
    assert not (tmp_path / "out/vis").exists()


def test_detect_does_not_mix_results_of_other_settings(
    detect: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = (folder / "1.png", "--no-drawings", "--threshold", 0.01)
    assert detect(*given) == 0
    before = (tmp_path / "out/detections.json").read_bytes()
    assert detect(*given, words=WORDS[0]) == 2
    assert "(words): begin anew with --restart" in capsys.readouterr().err
    assert detect(*given, "--threshold", 0.9) == 2
    assert "(threshold)" in capsys.readouterr().err
    assert (tmp_path / "out/detections.json").read_bytes() == before
    assert detect(*given, "--threshold", 0.9, "--restart") == 0
    assert len(content(tmp_path / "out")["annotations"]) < before.count(b"bbox")


def test_detect_does_anew_what_has_changed(
    detect: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        save(scene(40, 50, i), tmp_path / f"in/{i}.png")
    assert detect(tmp_path / "in") == 0
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/parts").iterdir()}
    save(scene(60, 50, 7), tmp_path / "in/1.png")
    (tmp_path / "in/2.png").unlink()
    assert detect(tmp_path / "in") == 0
    changed = [p.name for p, when in parts.items() if p.stat().st_mtime_ns != when]
    assert changed == ["1.png.json"]
    sizes = {i["file_name"]: i["height"] for i in content(tmp_path / "out")["images"]}
    assert sizes == {"0.png": 40, "1.png": 60}


def test_wrong_use_of_detect_is_told_in_a_sentence(
    detect: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*given: Any, **more: Any) -> str:
        assert detect(*given, **more) == 2
        assert not (tmp_path / "out/settings.json").exists()
        return capsys.readouterr().err

    assert "http" in said("https://x.org/a.jpg")
    assert "nothing.jpg" in said("nothing.jpg")
    assert "nothing.txt does not exist" in said(folder, words="nothing.txt")
    assert "word" in said(folder, words=" , ")
    assert "--threshold" in said(folder, "--threshold", 30)
    assert "--slices" in said(folder, "--slices", 0)
    assert "--device" in said(folder, "--device", "nonsense")
    assert "nothing.py" in said(folder, "--config", "nothing.py")
    (tmp_path / "images").mkdir()
    save(scene(9, 9), tmp_path / "a.png")
    assert "lies in the input" in said(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    for more in ((), ("--restart",)):
        assert "not empty and holds no detections" in said(folder, *more)
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"


def test_workers_need_an_extra(
    detect: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which one process does not."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "kdeov_mm.apps.bulk", raising=False)
    monkeypatch.delattr("kdeov_mm.apps.bulk", raising=False)
    for more in (["--workers", 2], ["--ray", "auto"]):
        assert detect(folder, *more) == 2
        assert "pip install 'kdeov_mm[scale]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert detect(folder / "1.png", "--no-drawings") == 0


def test_an_interrupted_run_says_so(
    detect: Callable[..., int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KDEOVInferencer, "drawing", interrupt)
    assert detect(folder) == 130
    assert "interrupted" in capsys.readouterr().err


DIES = """
import os, signal, sys
from tests.conftest import load_tool

tool = load_tool("detect")
write, parts = tool.write_whole, []

def write_whole(path, data):
    if "parts" in path.parts:
        parts.append(path)
    if len(parts) == 3:
        path.with_suffix(".tmp").write_bytes(data[:9])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

tool.write_whole = write_whole
tool.main(sys.argv[1:])
"""


def test_a_run_that_kill_9_ends_is_gone_on_with(
    detect: Callable[..., int], checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [checkpoint, folder, "--words", ", ".join(WORDS), "--out", out]
    command += ["--threshold", LEAST]
    died = subprocess.run(
        [sys.executable, "-c", DIES, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        env=run_env(KDEOV_CACHE=os.environ["KDEOV_CACHE"]),
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    done = {p: p.stat().st_mtime_ns for p in (out / "parts").rglob("*.json")}
    assert len(done) == 2 and not (out / "detections.json").exists()
    assert detect(folder) == 0
    assert all(p.stat().st_mtime_ns == when for p, when in done.items())
    finished = content(out)
    assert detect(folder, "--restart") == 0
    assert content(out) == finished
    assert [i["file_name"] for i in finished["images"]] == NATURAL
