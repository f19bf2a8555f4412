"""Two laws of every public door: what enters the model, and that calls are apart.

1. One image gives the same pixels in the same channel order, whichever door it takes.
2. What one call asks does not change what another one answers, in threads either.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch import Tensor

from kdeov_mm import KDEOV
from kdeov_mm.apps import answers
from kdeov_mm.inference.api import normalisation
from kdeov_mm.inference.inferencer import KDEOVInferencer
from kdeov_mm.vocabulary import Vocabulary

from ..conftest import ROOT, WORDS, load_tool
from .test_api import CLASSES, SIDE, as_tensor, rows, save, scene, write_joint

SIZES = [(97, SIDE), (131, 217)]  # shown as it is, and shrunk to the model's input
ROUNDS = 12


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, load_config: Callable[..., Config]
) -> Path:
    return write_joint(tmp_path_factory.mktemp("joint"), load_config)


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> KDEOV:
    return KDEOV.from_checkpoint(checkpoint)


def colours(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: red, green, blue and orange, which no swap leaves alone."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (250, 5, 10)
    image[: height // 2, width // 2 :] = (15, 240, 20)
    image[height // 2 :, : width // 2] = (25, 30, 245)
    image[height // 2 :, width // 2 :] = (230, 120, 35)
    return image


@pytest.fixture
def entered(student: KDEOV, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What enters the backbone of any model of this kind, (B, 3, H, W) each time."""
    kind, inputs = type(student.model.backbone), []
    forward = kind.forward

    def listen(self: Any, pixels: Tensor) -> Any:
        inputs.append(pixels.detach().clone())
        return forward(self, pixels)

    monkeypatch.setattr(kind, "forward", listen)
    return inputs


# ------------------------------------------------------------------- the same pixels


def by_pipeline(student: KDEOV, path: Path, checkpoint: Path) -> None:
    """As tools/test.py does: the config's test pipeline and mmengine's test step."""
    pipeline = Compose(student.model.cfg.test_dataloader.dataset.pipeline)
    data = pipeline(dict(img_path=str(path), img_id=0, words=CLASSES))
    with torch.no_grad():
        student.model.test_step(pseudo_collate([data]))


def by_inferencer(
    student: KDEOV, path: Path, checkpoint: Path, change: Callable[[np.ndarray], Any]
) -> None:
    image = path if change is Path else change(np.asarray(Image.open(path)))
    inferencer = KDEOVInferencer(None, checkpoint, "cpu", show_progress=False)
    (result,) = inferencer.stream(image, WORDS)
    assert result.error is None


def by_tool(student: KDEOV, path: Path, checkpoint: Path) -> None:
    given = [checkpoint, path, "--words", ", ".join(WORDS)]
    given += ["--out", path.parent / "out", "--no-drawings"]
    assert load_tool("detect").main([str(a) for a in given]) == 0


def by_page(student: KDEOV, path: Path, checkpoint: Path) -> None:
    drawn, _, _ = answers.find(student, path, ", ".join(WORDS))
    assert drawn is not None


def by_index(student: KDEOV, path: Path, checkpoint: Path) -> None:
    pytest.importorskip("lancedb")
    from kdeov_mm.apps.search import ImageIndex

    index = ImageIndex(student, path.parent, path.parent / "index")
    assert index.update()["images"] == 1


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "pil": Image.fromarray,
    "array": lambda rgb: rgb,
    "bytes": as_tensor,
    "floats": lambda rgb: as_tensor(rgb) / 255,
}


def by_api(ask: str, kind: str) -> Callable[..., None]:
    def door(student: KDEOV, path: Path, checkpoint: Path) -> None:
        image = path if kind == "path" else KINDS[kind](np.asarray(Image.open(path)))
        more = [] if ask == "encode_image" else [WORDS]
        getattr(student, ask)(image, *more)

    return door


DOORS: dict[str, Callable[..., None]] = {
    f"{ask} of {kind}": by_api(ask, kind)
    for ask in ("encode_image", "zero_shot_classify", "open_vocabulary_detect")
    for kind in ("path", *KINDS)
}
DOORS |= {
    f"inferencer of {kind}": lambda *a, change=change: by_inferencer(*a, change)
    for kind, change in {
        "path": Path,
        "pil": Image.fromarray,
        "a BGR array": lambda rgb: rgb[..., ::-1],
    }.items()
}
DOORS |= {"detect.py": by_tool, "web page": by_page, "search index": by_index}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_shows_the_model_the_same_pixels(
    door: str,
    size: tuple[int, int],
    student: KDEOV,
    checkpoint: Path,
    entered: list[Tensor],
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    path = save(colours(*size), tmp_path / "in/odd.png")
    by_pipeline(student, path, checkpoint)
    DOORS[door](student, path, checkpoint)
    wanted, *others = entered
    assert others and all(torch.equal(pixels, wanted) for pixels in others)


def test_pixels_come_as_rgb_and_a_swap_would_be_seen(
    student: KDEOV, entered: list[Tensor]
) -> None:
    image = colours(*SIZES[0])
    student.encode_image([image, image[..., ::-1]])
    (pixels,) = entered
    own = pixels[0, :, : SIZES[0][0]].permute(1, 2, 0) * 255
    assert np.array_equal(own.round().byte().numpy(), image)
    assert (pixels[0] - pixels[1]).abs().max() > 0.5


@pytest.mark.parametrize("size", SIZES)
def test_the_onnx_client_prepares_the_same_pixels(
    size: tuple[int, int], student: KDEOV, entered: list[Tensor]
) -> None:
    pytest.importorskip("onnxruntime")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import onnx_client
    finally:
        sys.path.pop(0)
    image = colours(*size)
    student.open_vocabulary_detect(image, WORDS)
    preprocessor = student.model.data_preprocessor
    about = dict(
        size=student.size,
        stride=preprocessor.pad_size_divisor,
        normalisation=normalisation(preprocessor),
    )
    pixels, _ = onnx_client.prepare(image, about)
    assert pixels.shape == tuple(entered[0].shape)
    # it resizes in float, and OpenCV in whole numbers: one of 255 values at most
    far = np.abs(pixels - entered[0].numpy()).max() * 255
    assert far < (1e-3 if max(size) == SIDE else 1.01)


# ------------------------------------------------------------------- calls are apart


IMAGE = scene(100, 140)
# words, least score, suppression of each call
ASKED: list[tuple[Any, float, float]] = [
    (WORDS, 0.2, 0.5),
    (WORDS, 0.6, 0.5),
    (WORDS, 0.2, 0.1),
    (WORDS[::-1], 0.2, 0.5),
    (WORDS[2:4], 0.3, 0.9),
    ([WORDS[5], (WORDS[1], WORDS[0])], 0.2, 0.5),
]


def answer(student: KDEOV, which: int) -> Tensor:
    words, score, nms = ASKED[which]
    (found,) = student.open_vocabulary_detect(IMAGE, words, score, nms)
    return rows(found)


def test_a_call_does_not_change_what_the_next_one_answers(student: KDEOV) -> None:
    alone = [answer(student, i) for i in range(len(ASKED))]
    assert all(len(found) > 5 for found in alone)
    assert len({(len(found), found.sum().item()) for found in alone}) == len(ASKED)
    before = {k: v.clone() for k, v in student.model.state_dict().items()}
    for first in range(len(ASKED)):
        for second in range(len(ASKED)):
            answer(student, first)
            assert torch.equal(answer(student, second), alone[second])
    for key, value in student.model.state_dict().items():
        assert torch.equal(value, before[key])


def in_threads(tasks: Sequence[Callable[[], Any]], rounds: int) -> list[list[Any]]:
    """What each task returns, all begun at once in each round."""
    barrier = threading.Barrier(len(tasks))
    answers: list[list[Any]] = [[] for _ in tasks]
    errors: list[BaseException] = []

    def work(task: Callable[[], Any], own: list[Any]) -> None:
        try:
            for _ in range(rounds):
                barrier.wait(timeout=60)
                own.append(task())
        except BaseException as error:  # noqa: BLE001  (raised again below)
            barrier.abort()
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(task, own), daemon=True)
        for task, own in zip(tasks, answers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


@pytest.mark.parametrize("pair", [(0, 1), (0, 3), (4, 5), (1, 2)])
def test_two_threads_do_not_influence_each_other(
    student: KDEOV, pair: tuple[int, int]
) -> None:
    alone = [answer(student, i) for i in pair]
    tasks = [lambda i=i: answer(student, i) for i in pair]
    for found, wanted in zip(in_threads(tasks, ROUNDS), alone):
        assert len(found) == ROUNDS
        assert all(torch.equal(each, wanted) for each in found)


def other_vectors(student: KDEOV) -> Vocabulary:
    """The first two words, each with the vector of the other one."""
    encoder = student.model.text_encoder
    vectors = dict(zip(WORDS[:2], encoder(WORDS[:2]).flip(0)))
    return Vocabulary(WORDS[:2], vectors=vectors, encoder=encoder.made_by)


def test_vectors_of_a_vocabulary_answer_in_its_own_call_alone(student: KDEOV) -> None:
    asks: list[Callable[[Any], Tensor]] = [
        lambda words: rows(student.open_vocabulary_detect(IMAGE, words)[0]),
        lambda words: student.zero_shot_classify(IMAGE, words),
    ]
    given = other_vectors(student)
    for ask in asks:
        plain, swapped = ask(WORDS[:2]), ask(given)
        assert not torch.equal(plain, swapped)
        assert torch.equal(ask(WORDS[:2]), plain)
        assert torch.equal(ask(given), swapped)


def test_vectors_of_a_vocabulary_do_not_reach_another_thread(student: KDEOV) -> None:
    given = other_vectors(student)
    tasks = [
        lambda: student.zero_shot_classify(IMAGE, WORDS[:2]),
        lambda: student.zero_shot_classify(IMAGE, given),
    ]
    alone = [task() for task in tasks]
    for found, wanted in zip(in_threads(tasks, ROUNDS), alone):
        assert all(torch.equal(each, wanted) for each in found)


def test_streams_of_an_inferencer_can_be_read_in_turns(checkpoint: Path) -> None:
    inferencer = KDEOVInferencer(None, checkpoint, "cpu", show_progress=False)
    images = [scene(60, 80, seed)[..., ::-1] for seed in range(3)]

    def boxes(result: Any) -> Tensor:
        found = result.sample.pred_instances
        return torch.cat([found.bboxes, found.scores[:, None]], 1)

    def stream(which: int) -> Any:
        words, threshold = ((WORDS, 0.2), (WORDS[3:], 0.5))[which]
        return inferencer.stream(images, words, score_threshold=threshold)

    alone = [[boxes(r) for r in stream(which)] for which in range(2)]
    for number, pair in enumerate(zip(stream(0), stream(1), strict=True)):
        for which, result in enumerate(pair):
            assert torch.equal(boxes(result), alone[which][number])
