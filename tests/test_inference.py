"""Images and words -> boxes, names, drawings: any picture, any words."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image

from kdeov_mm.inference import Detections, detect, draw, load_model, read_image
from kdeov_mm.models import KDEOVDetector

from .conftest import WORDS, enliven, make_sample

WIDTH, HEIGHT = 61, 43


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> KDEOVDetector:
    """The demo's student, untrained, from a checkpoint as users load it."""
    from mmdet.registry import MODELS

    cfg = load_config("kdeov_n_shapes.py")
    cfg.model.test_cfg.score_thr = 0.0
    student = MODELS.build(cfg.model)
    student.init_weights()
    enliven(student)
    path = tmp_path_factory.mktemp("checkpoint") / "student.pth"
    torch.save(dict(state_dict=student.state_dict(), meta={}), path)
    return load_model(cfg, path)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """(H, W, 3) uint8 RGB, smooth, with four unlike corners."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x / WIDTH, y / HEIGHT, 1 - x * y / WIDTH / HEIGHT], -1)
    return (rgb * 255).astype(np.uint8)


def bgr_of(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., ::-1]


# --------------------------------------------------------------------- reading


def test_colour_comes_in_the_order_of_mm(scene: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), bgr_of(scene))


def test_gray_is_the_same_in_all_channels(scene: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(scene).convert("L").save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert (image == image[..., :1]).all() and image.std() > 10


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    Image.fromarray(gray.astype(np.uint16)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")[..., 0]
    assert np.abs(image - gray / 257).max() <= 1


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == [30, 20, 10]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white_paper(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    picture.save(tmp_path / "a.png", **options)
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_a_turned_photo_stands_upright(scene: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise"
    turned = Image.fromarray(scene).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), bgr_of(scene))


def jpeg(path: Path, scene: np.ndarray) -> Path:
    Image.fromarray(scene).resize((640, 480)).save(path, quality=95)
    return path


def truncated_jpeg(path: Path, scene: np.ndarray) -> Path:
    data = jpeg(path, scene).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def huge_png(path: Path) -> Path:
    """The head of a PNG that claims 60000 x 60000 pixels."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    path.write_bytes(bytes(data))
    return path


def unreadable(folder: Path, scene: np.ndarray) -> list[Path]:
    text, empty = folder / "text.jpg", folder / "empty.png"
    text.write_text("this is no picture")
    empty.write_bytes(b"")
    return [
        truncated_jpeg(folder / "truncated.jpg", scene),
        text,
        empty,
        huge_png(folder / "huge.png"),
        folder / "missing.jpg",
        folder,
    ]


def thread(path: Path) -> Path:
    """A picture that the pipeline makes less than a pixel high."""
    Image.new("RGB", (6000, 3)).save(path)
    return path


@pytest.mark.parametrize("which", range(6))
def test_an_unreadable_file_is_named(
    scene: np.ndarray, tmp_path: Path, which: int
) -> None:
    path = unreadable(tmp_path, scene)[which]
    with pytest.raises(OSError, match=path.name):
        read_image(path)


# ------------------------------------------------------------------- detecting


def every_kind(folder: Path, scene: np.ndarray) -> list[Path]:
    rgb = Image.fromarray(scene)
    pictures = {
        "rgb.png": rgb,
        "gray.png": rgb.convert("L"),
        "rgba.png": rgb.convert("RGBA"),
        "palette.gif": rgb.convert("P"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "one_bit.png": rgb.convert("1"),
        "sixteen_bits.png": Image.fromarray(scene[..., 0].astype(np.uint16) * 257),
        "pixel.png": rgb.resize((1, 1)),
        "wide.jpg": rgb.resize((6000, 40)),
        "column.png": rgb.resize((2, 300)),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    return [folder / name for name in pictures]


def test_every_kind_of_picture_is_searched(
    model: KDEOVDetector, scene: np.ndarray, tmp_path: Path
) -> None:
    paths = every_kind(tmp_path, scene)
    results = list(detect(model, paths, WORDS))
    assert [r.path for r in results] == paths
    for result in results:
        assert result.error is None, result.error
        found = result.sample.pred_instances
        height, width = read_image(result.path).shape[:2]
        assert result.sample.ori_shape == (height, width)
        assert found.bboxes.isfinite().all() and found.scores.isfinite().all()
        assert (found.bboxes[:, 0::2] <= width).all()
        assert (found.bboxes[:, 1::2] <= height).all()
        assert (found.bboxes >= 0).all()
        assert found.label_names == [WORDS[i] for i in found.labels]
    assert sum(len(r.sample.pred_instances) for r in results) > 100


def test_unreadable_files_are_named_and_the_rest_goes_on(
    model: KDEOVDetector, scene: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    good, bad = every_kind(tmp_path, scene)[:7], unreadable(tmp_path / "bad", scene)
    bad.append(thread(tmp_path / "bad/thread.png"))
    paths = [path for pair in zip(bad, good, strict=True) for path in pair]
    results = list(detect(model, paths, WORDS))
    assert [r.path for r in results] == paths
    for result in results:
        if result.path in bad:
            assert str(result.path) in result.error and result.sample is None
        else:
            assert result.error is None and result.sample is not None


def as_rows(result: Detections, words: Sequence[str]) -> torch.Tensor:
    """(n, 6): index in WORDS, box, score; sorted."""
    found = result.sample.pred_instances
    index = [float(WORDS.index(words[i])) for i in found.labels]
    rows = torch.cat(
        [torch.tensor(index)[:, None], found.bboxes, found.scores[:, None]], 1
    )
    return torch.tensor(sorted(rows.tolist()))


def test_number_and_order_of_the_words_do_not_change_what_is_found(
    model: KDEOVDetector, tmp_path: Path
) -> None:
    """Without fusion. Only the best `max_per_img` boxes are kept, so ask for all."""
    model.bbox_head.test_cfg.max_per_img = 10**6
    path = tmp_path / "a.png"  # noise, so that no two boxes are equal
    noise = np.random.default_rng(0).integers(256, size=(160, 160, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    (all_words,) = detect(model, [path], WORDS)
    wanted = as_rows(all_words, WORDS)
    assert len(wanted) > 100
    for words in (WORDS[::-1], (WORDS[4],), (WORDS[2], WORDS[0], WORDS[5])):
        (result,) = detect(model, [path], words)
        kept = torch.isin(
            wanted[:, 0], torch.tensor([float(WORDS.index(w)) for w in words])
        )
        torch.testing.assert_close(
            as_rows(result, words), wanted[kept], atol=1e-4, rtol=1e-4
        )


def test_words_can_be_a_list_and_need_no_training(
    model: KDEOVDetector, scene: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene).save(path)
    (result,) = detect(model, [str(path)], ["a word that nobody knows"])
    assert set(result.sample.pred_instances.label_names) == {"a word that nobody knows"}


def test_inference_equals_the_test_pipeline(model: KDEOVDetector, world: Path) -> None:
    """The same picture through tools/test.py's data set and through `detect`."""
    from mmdet.registry import DATASETS
    from mmengine.dataset import pseudo_collate

    dataset = DATASETS.build(model.cfg.test_dataloader.dataset)
    data = dataset[0]
    words = data["data_samples"].text
    with torch.no_grad():
        (wanted,) = model.test_step(pseudo_collate([data]))
    (result,) = detect(model, [data["data_samples"].img_path], words)
    ours, theirs = result.sample.pred_instances, wanted.pred_instances
    assert len(ours) > 10
    torch.testing.assert_close(ours.scores, theirs.scores)
    torch.testing.assert_close(ours.bboxes, theirs.bboxes)
    assert torch.equal(ours.labels, theirs.labels)


def test_a_missing_checkpoint_says_how_to_get_one(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.pth.*tools/train.py"):
        load_model(load_config("kdeov_n_shapes.py"), tmp_path / "nothing.pth")


# --------------------------------------------------------------------- drawing


def found_sample(truth: bool) -> object:
    sample = make_sample([[5, 5, 30, 30]], [0], shape=(HEIGHT, WIDTH))
    if not truth:
        del sample.gt_instances
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 8, 40, 30], [2, 2, 9, 9]]),
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.9, 0.1]),
    )
    return sample


PALETTE = [(255, 0, 0), (0, 255, 0)] * 3


def test_truth_stands_left_of_the_predictions(scene: np.ndarray) -> None:
    alone = draw(scene, found_sample(truth=False), WORDS, PALETTE, side=320)
    both = draw(scene, found_sample(truth=True), WORDS, PALETTE, side=320)
    assert alone.dtype == np.uint8 and max(alone.shape) == 320
    assert both.shape == (alone.shape[0], 2 * alone.shape[1], 3)
    assert np.array_equal(both[:, alone.shape[1] :], alone)
    assert not np.array_equal(both[:, : alone.shape[1]], alone)


def test_only_sure_predictions_are_drawn(scene: np.ndarray) -> None:
    sample = found_sample(truth=False)
    some = draw(scene, sample, WORDS, PALETTE, score_threshold=0.5)
    every = draw(scene, sample, WORDS, PALETTE, score_threshold=0.05)
    none = draw(scene, sample, WORDS, PALETTE, score_threshold=0.95)
    plain = Image.fromarray(scene).resize(none.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.array_equal(none, np.asarray(plain))
    assert (some != none).any() and (every != some).any()


def test_marked_names_look_different(scene: np.ndarray) -> None:
    sample = found_sample(truth=False)
    plain = draw(scene, sample, WORDS, PALETTE)
    marked = draw(scene, sample, WORDS, PALETTE, marked=[WORDS[1]])
    other = draw(scene, sample, WORDS, PALETTE, marked=[WORDS[4]])
    assert (plain != marked).any() and np.array_equal(plain, other)


def test_drawing_leaves_the_sample_alone(scene: np.ndarray) -> None:
    sample = found_sample(truth=True)
    before = sample.pred_instances.bboxes.clone()
    draw(scene, sample, WORDS, PALETTE)
    assert torch.equal(sample.pred_instances.bboxes, before)
    assert sample.gt_instances.bboxes.tolist() == [[5, 5, 30, 30]]
