"""The form for a GPU: the same boxes, no look at values, few graphs."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdeov_mm.models import HeadInput, KDEOVDetector, TextEmbeds, fixed_boxes, static
from kdeov_mm.models.static import StaticForm

from ..conftest import EMBED_DIMS, WORDS
from .test_folded import build, samples

CFG = dict(score_thr=0.3, max_per_img=40, nms_pre=30000)


def images(number: int, *size: int) -> Tensor:
    return torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(3))


class Captures:
    """Stands for :func:`capture`: its inputs and its output are the same each time."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, function: Any, inputs: Sequence[Tensor], pool: Any) -> Any:
        self.shapes.append(tuple(inputs[0].shape))
        kept = [each.clone() for each in inputs]
        result = function(*kept)

        def replay(*given: Tensor) -> Tensor:
            for old, new in zip(kept, given, strict=True):
                old.copy_(new)
            return result.copy_(function(*kept))

        return replay


def boxes(model: nn.Module, inputs: Tensor, words: Any = None) -> list[InstanceData]:
    """Of images that were twice as large."""
    asked = samples((inputs.shape[2], inputs.shape[3]), words) * len(inputs)
    asked = [sample.clone() for sample in asked[: len(inputs)]]
    for sample in asked:
        height, width = sample.img_shape
        more = dict(scale_factor=(0.5, 0.5), ori_shape=(2 * height, 2 * width))
        sample.set_metainfo(more)
    with torch.no_grad():
        return [s.pred_instances for s in model.predict(inputs, asked)]


def equal(these: list[InstanceData], those: list[InstanceData]) -> None:
    """The same boxes of the same words; but for the order of scores that tie."""
    for one, other in zip(these, those, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-5)
        # of those that tie with the last one, others may be left out
        one, other = (
            each[each.scores > one.scores[-1] + 1e-5] for each in (one, other)
        )
        distance = torch.cdist(one.bboxes, other.bboxes, p=torch.inf)
        distance = distance + (one.scores[:, None] - other.scores).abs() * 100
        distance = distance + (one.labels[:, None] != other.labels) * 1e4
        nearest = distance.min(1)
        assert nearest.values.max() < 0.01 and len(one) == len(other) > 3
        assert len(nearest.indices.unique()) == len(one)
        names = [other.label_names[i] for i in nearest.indices.tolist()]
        assert one.label_names == names


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "free"])
@pytest.mark.parametrize(
    "form, number",
    [("plain", 3), ("plain", 1203), ("group norm, unit length", 80), ("light", 80)],
)
def test_the_boxes_are_those_of_a_cpu(
    form: str,
    number: int,
    folded: bool,
    build_detector: Callable[..., KDEOVDetector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In any batch, the first time and from a graph, however boxes are suppressed."""
    model: Any = build(build_detector, form)
    words = None if folded else [f"word {i}" for i in range(number)]
    if folded:
        model = model.fold([f"word {i}" for i in range(number)])
    plain = dict(type="nms", iou_threshold=0.5)
    for nms in (plain, dict(plain, class_agnostic=True), None):
        model.box_cfg.update(CFG, nms=nms)
        inputs = images(4, 32, 96)
        model.static = None
        expected = boxes(model, inputs, words)
        assert all(map(len, expected))
        captures = Captures()
        model.static = StaticForm(captures, "cpu")
        # nothing is asked again
        monkeypatch.setattr(type(model.bbox_head), "predict", None)
        for _ in range(3):
            equal(boxes(model, inputs, words), expected)
        equal(boxes(model, inputs[1:2], words), expected[1:2])
        assert captures.shapes == [(4, 3, 32, 96)]
        # image by image, where there is room for no more
        monkeypatch.setattr(fixed_boxes, "PART", 1000)
        model.static = StaticForm(captures, "cpu")
        equal(boxes(model, inputs, words), expected)
        monkeypatch.undo()


def test_images_are_asked_again_where_the_scores_do_not_suffice(
    build_detector: Callable[..., KDEOVDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So few boxes stay that more scores are looked at; or the rounds end too early."""
    model: Any = build(build_detector).fold(WORDS[:1])
    predict, asked = type(model.bbox_head).predict, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return predict(self, *args, **kwargs)

    for most, iou, rounds in ((30, 0.1, 16), (100, 0.1, 1)):
        nms = dict(type="nms", iou_threshold=iou)
        model.box_cfg.update(CFG, score_thr=0.0, max_per_img=most, nms=nms)
        model.static = None
        expected = boxes(model, images(2, 64, 96))
        model.static = StaticForm(Captures(), "cpu")
        with monkeypatch.context() as patch:
            patch.setattr(fixed_boxes, "ROUNDS", rounds)
            patch.setattr(type(model.bbox_head), "predict", counted)
            equal(boxes(model, images(2, 64, 96)), expected)
        assert asked
        asked.clear()


def test_graphs_are_few_and_of_the_model_as_it_is(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    detector = build(build_detector)
    model, captures = detector.fold(WORDS), Captures()
    model.box_cfg.update(CFG)
    model.static = StaticForm(captures, "cpu", shapes=2)

    def captured(*sizes: int) -> int:
        before = len(captures.shapes)
        for size in sizes:
            boxes(model, images(1, 32, size))
        return len(captures.shapes) - before

    # a new shape at its second time; of three the first one goes
    assert [captured(32), captured(32), captured(32)] == [0, 1, 0]
    assert captured(64, 64, 32) == 1 and captured(96, 96, 32, 32, 64, 64) == 2
    # other thresholds of suppression are other graphs, another least score is none
    model.box_cfg.score_thr = 0.4
    assert captured(64) == 0
    model.box_cfg.nms.iou_threshold = 0.4
    assert captured(64, 64) == 1
    # new words, and weights in another place
    detector.fold([*WORDS[:3], "x", "y", "z"], into=model)
    assert captured(64, 64) == 1
    model.double()
    assert captured(64, 64) == 1
    # weights that change in their place are read
    before = boxes(model, images(1, 32, 64))
    state = {key: value * 0.9 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    after = boxes(model, images(1, 32, 64))
    assert captured(64) == 0 and not torch.equal(before[0].scores, after[0].scores)
    # a copy has none, though it has the settings
    twin = copy.deepcopy(model)
    assert twin.static is not None and not twin.static.kept and model.static.kept
    assert twin.static.shapes == 2


def test_a_training_has_the_memory_of_its_validation(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector)
    model.box_cfg.update(CFG)
    model.static = form = StaticForm(Captures(), "cpu")
    boxes(model, images(1, 32, 32), WORDS)
    assert form.kept
    model.eval()
    assert form.kept
    model.train()
    assert not form.kept and not form.weights


def test_it_is_for_gpus_and_for_plain_questions(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector).fold(WORDS)
    model.box_cfg.update(CFG)
    cfg, inputs, static = model.box_cfg, images(1, 32, 32), StaticForm(device="cpu")
    with torch.no_grad():
        assert static.suits(model, inputs, cfg)
        assert not StaticForm().suits(model, inputs, cfg)
        assert not static.suits(model, inputs, dict(cfg, multi_label=False))
        assert not static.suits(model, inputs, type(cfg)(cfg, max_per_img=10**6))
        with torch.autocast("cpu"):
            assert not static.suits(model, inputs, cfg)
        assert not static.suits(model.train(), inputs, cfg)
    assert not static.suits(model.eval(), inputs, cfg)


def test_what_cannot_be_captured_is_said_and_computed(
    build_detector: Callable[..., KDEOVDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("not permitted when stream is capturing")

    said: list[str] = []
    monkeypatch.setattr(static, "print_log", lambda text, *_, level: said.append(text))
    model = build(build_detector).fold(WORDS)
    model.box_cfg.update(CFG)
    wanted = boxes(model, images(1, 64, 96))
    model.static = StaticForm(fails, "cpu")
    for _ in range(3):
        (found,) = boxes(model, images(1, 64, 96))
        torch.testing.assert_close(found.bboxes, wanted[0].bboxes)
    # once for a shape
    (text,) = said
    assert "no CUDA graph" in text and "not permitted" in text


class OnTheHost(TorchDispatchMode):
    """Refuses operators on tensors of the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, result)):
            assert not isinstance(each, Tensor) or each.is_cuda, func
        return result


def onto_fake_gpu(model: nn.Module) -> None:
    """Weights without content, on a GPU that is not there."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, old in own.items():
                if old is not None:
                    own[name] = torch.empty(old.shape, dtype=old.dtype, device="cuda")


@pytest.mark.parametrize(
    "form", ["group norm, unit length", "light", "film", "attention"]
)
def test_no_value_is_looked_at_and_nothing_is_on_the_host(
    form: str, build_detector: Callable[..., KDEOVDetector]
) -> None:
    """Tensors without content have no values: to look at one is an error."""
    free = build(build_detector, form)
    folded = free.fold([("ball", "sphere"), *WORDS[1:]])
    for model in (free, folded):
        model.half()
        with FakeTensorMode(), torch.no_grad():
            with pytest.raises(AssertionError), OnTheHost():
                torch.zeros(2).to("cuda")
            onto_fake_gpu(model)
            inputs = torch.empty(2, 3, 64, 96, device="cuda")
            vectors = torch.empty(7, EMBED_DIMS, device="cuda")
            owner = torch.empty(7, dtype=torch.long, device="cuda")
            for nms in (dict(type="nms", iou_threshold=0.5), None):
                model.box_cfg.update(CFG, nms=nms)
                with OnTheHost():
                    given: Any = model.extract_feat(inputs)
                    if model is free:
                        text = TextEmbeds(vectors, owner)
                        given = HeadInput(model.fused(given, text), text)
                    rows = model.bbox_head.fixed(given, 6, model.box_cfg)
                assert rows.shape == (2, 41, 6) and rows.dtype == torch.float32


def test_half_precision_is_near_full(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector).fold(WORDS)
    model.box_cfg.update(CFG)
    model.static = StaticForm(Captures(), "cpu")
    (full,) = boxes(model, images(1, 64, 96))
    (half,) = boxes(model.half(), images(1, 64, 96))
    assert half.scores.dtype == half.bboxes.dtype == torch.float32
    torch.testing.assert_close(half.scores, full.scores, atol=0.02, rtol=0.02)
