"""Fixed words: a plain detector that says the same, and vocabularies of any size."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdeov_mm import KDEOV
from kdeov_mm.models import (
    CandidateLocations,
    FoldedDetector,
    HeadInput,
    KDEOVDetector,
    TextEmbeds,
    postprocess,
)
from kdeov_mm.models.folded import FoldedHeadModule
from kdeov_mm.models.postprocess import above, max_boxes, score_in_parts
from kdeov_mm.models.text_classifier import Linear1x1
from kdeov_mm.vocabulary import Vocabulary, as_vocabulary

from ..conftest import EMBED_DIMS, WORDS, enliven

LIGHT = {
    "bbox_head.head_module.light": True,
}
FORMS: dict[str, dict[str, Any]] = {
    "unit length": {},
    "plain": {"bbox_head.head_module.l2_norm": False},
    "adapter": {"bbox_head.head_module.adapter": "ClassFiLM"},
    "film": {"fusion": "FiLMFusion"},
    "attention": {"fusion": "CrossAttentionFusion"},
    "group norm": {
        "bbox_head.head_module.projection_norm": dict(
            type="GN", num_groups=4, _delete_=True
        ),
        "bbox_head.head_module.l2_norm": False,
    },
    "group norm, unit length": {
        "bbox_head.head_module.projection_norm": dict(
            type="GN", num_groups=4, _delete_=True
        ),
    },
    "light": {**LIGHT},
    "light, plain": {**LIGHT, "bbox_head.head_module.l2_norm": False},
    "light, group norm": {
        **LIGHT,
        "bbox_head.head_module.projection_norm": dict(
            type="GN", num_groups=4, _delete_=True
        ),
    },
    "grid": {"bbox_head.head_module.type": "mmdet.GridHeadModule"},
    "centred": {"bbox_head.head_module.centred": True},
}
KEEP_ALL = dict(score_thr=0.0, nms_pre=10**6, max_per_img=10**6)


def build(
    build_detector: Callable[..., KDEOVDetector],
    form: str = "unit length",
    **changes: Any,
) -> KDEOVDetector:
    """An untrained student that finds many boxes, its fusion no identity."""
    options = dict(FORMS[form])
    if form == "adapter":
        options = {
            "bbox_head.head_module.adapter": dict(
                type="mmdet.ClassFiLM", text_dims=EMBED_DIMS
            )
        }
    if "fusion" in options:
        options["fusion"] = dict(
            type=options["fusion"],
            in_channels=[256, 512, 1024],
            text_dims=EMBED_DIMS,
            widen_factor=0.25,
        )
    keep = {f"test_cfg.{key}": value for key, value in KEEP_ALL.items()}
    model = build_detector(teacher=None, distill=None, **keep, **options, **changes)
    enliven(model)
    torch.manual_seed(1)
    module = model.bbox_head.head_module
    if module.classifier.centre is not None:
        nn.init.normal_(module.classifier.centre, std=0.1)
    for part in (model.fusion, module.classifier.adapter):
        for parameter in part.parameters() if part is not None else ():
            nn.init.normal_(parameter, std=0.1)
    return model


def samples(shape: tuple[int, int], words: Sequence[Any] | None) -> list[DetDataSample]:
    meta: dict[str, Any] = dict(
        img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)
    )
    if words is not None:
        meta["words"] = as_vocabulary(words).words
    return [DetDataSample(metainfo=dict(meta)) for _ in range(2)]


def found(
    model: nn.Module, images: Tensor, words: Sequence[Any] | None = None
) -> list[Any]:
    with torch.no_grad():
        shape = (images.shape[2], images.shape[3])
        results = model.predict(images, samples(shape, words))
    return [result.pred_instances for result in results]


def same(these: list[Any], those: list[Any], tolerance: float = 1e-4) -> None:
    """The same boxes of the same words; their order may differ where scores tie."""
    for one, other in zip(these, those, strict=True):
        assert len(one) == len(other) > 50
        distance = torch.cdist(one.bboxes, other.bboxes, p=torch.inf)
        distance = distance + (one.scores[:, None] - other.scores).abs() * 100
        distance = distance + (one.labels[:, None] != other.labels) * 1e4
        nearest = distance.min(1)
        assert nearest.values.max() < 100 * tolerance
        assert len(nearest.indices.unique()) == len(one)
        names = [other.label_names[i] for i in nearest.indices.tolist()]
        assert one.label_names == names


def said(model: nn.Module, images: Tensor, words: Any = None) -> list[Tensor]:
    """Logits and box sides of all levels."""
    with torch.no_grad():
        if isinstance(model, KDEOVDetector):
            given: Any = model.head_input(images, as_vocabulary(words).words)
        else:
            given = model.extract_feat(images)
        logits, sides = model.bbox_head(given)
    return [*logits, *sides]


IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_folded_detector_says_the_same(
    form: str, fuse: bool, build_detector: Callable[..., KDEOVDetector]
) -> None:
    model = build(build_detector, form)
    folded = model.fold(WORDS, fuse)
    for one, other in zip(said(folded, IMAGES), said(model, IMAGES, WORDS)):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)
    if form == "plain":
        same(found(folded, IMAGES), found(model, IMAGES, WORDS), 1e-3)


def test_its_state_is_that_of_mmyolos_detector(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    """Without the L2 norm."""
    model = build(build_detector, "plain")
    folded = model.fold(WORDS, fuse=False)
    cfg = dict(
        type="mmyolo.YOLOv8HeadModule",
        num_classes=len(WORDS),
        in_channels=[256, 512, 1024],
        widen_factor=0.25,
    )
    plain = MODELS.build(cfg)
    state = folded.bbox_head.head_module.state_dict()
    # a closed-set class branch is as wide as its classes, at least: 64 here
    wide = {key: value.shape for key, value in plain.state_dict().items()}
    assert state.keys() == wide.keys()
    assert state["cls_preds.0.2.weight"].shape[0] == wide["cls_preds.0.2.weight"][0]
    assert not {"text_encoder", "teacher"} & dict(folded.named_children()).keys()


def test_folding_leaves_the_detector_as_it_is(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = found(model, IMAGES, WORDS)
    folded = model.fold(WORDS)
    for parameter in folded.parameters():
        parameter.data.fill_(0.5)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    same(found(model, IMAGES, WORDS), first, 1e-6)


@pytest.mark.parametrize("synonyms", ["mean", "max"])
@pytest.mark.parametrize("part", [postprocess.PART, 1000])
def test_synonyms_fold(
    synonyms: str,
    part: int,
    build_detector: Callable[..., KDEOVDetector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(build_detector, synonyms=synonyms)
    words = ("red ball", ("blue cube", "azure box", "cube"), ("dog", "small dog"))
    model.bbox_head.test_cfg.nms.iou_threshold = 1.0
    expected = found(model, IMAGES, words)
    monkeypatch.setattr("kdeov_mm.models.ov_head.PART", part)
    monkeypatch.setattr(postprocess, "PART", part)
    same(found(model.fold(words), IMAGES), expected)
    same(found(model, IMAGES, words), expected)


@pytest.mark.parametrize("form", ["plain", "film", "unit length"])
def test_words_can_be_changed(
    form: str, build_detector: Callable[..., KDEOVDetector]
) -> None:
    model = build(build_detector, form)
    folded = model.fold(WORDS)
    other = ("green star", "tree", ("dog", "puppy"))
    assert model.fold(other, into=folded) is folded
    for one, two in zip(said(folded, IMAGES), said(model.fold(other), IMAGES)):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="another detector"):
        build(build_detector, form).fold(WORDS, into=folded)


def test_a_detector_in_training_folds_as_in_testing(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector)
    expected = said(model.fold(WORDS), IMAGES)
    model.train()
    got = said(model.fold(WORDS), IMAGES)
    assert model.training and model.bbox_head.head_module.training
    assert all(torch.equal(one, other) for one, other in zip(got, expected))


def test_a_vocabulary_with_vectors_needs_no_text_tower(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector)
    words = Vocabulary(WORDS).embed(model.text_encoder)
    same(found(model.fold(words), IMAGES), found(model.fold(WORDS), IMAGES))


def test_samples_with_other_words_are_refused(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    folded = build(build_detector).fold(WORDS)
    found(folded, IMAGES, WORDS)
    with pytest.raises(ValueError, match="folded for 6 words"):
        found(folded, IMAGES, WORDS[::-1])


@pytest.mark.parametrize(
    "words, options, message",
    [
        ([], {}, "at least one class"),
        (["dog", ()], {}, "one word for each"),
        (WORDS, dict(candidates=0), "at least one location"),
    ],
)
def test_bad_requests_are_refused(
    words: Any,
    options: dict[str, Any],
    message: str,
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    with pytest.raises(ValueError, match=message):
        build(build_detector).fold(words, **options)


# ------------------------------------------------------------- the order of products


def test_the_order_of_products_is_the_cheaper_one_and_says_the_same(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector)
    head = model.bbox_head.head_module
    assert not head._folding_is_cheaper(1000)  # 80 channels, 32 dimensions
    assert head._folding_is_cheaper(50)
    words = [f"word {i}" for i in range(200)]
    text = model.text_encoder(words)
    few, many = FoldedHeadModule(head), FoldedHeadModule(head)
    few.set_words(head.final_layers(text[:50]), None)
    many.set_words(head.final_layers(text), None)
    # two layers, the length, the words; or the projection, the norm, the words
    depths = [len(folded.cls_preds[0]) for folded in (few, many)]
    assert depths == [4, 5]
    with torch.no_grad():
        feats = model.extract_feat(IMAGES)
        for folded, number in ((few, 50), (many, 200)):
            own, _ = head(HeadInput(feats, TextEmbeds(text[:number])))
            for one, other in zip(folded(feats)[0], own):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class Stops(TorchDispatchMode):
    """Counts the operators for which a GPU's host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        masks = args[1] if name.startswith("index") and len(args) > 1 else ()
        masked = isinstance(masks, (list, tuple)) and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in masks
        )
        if masked or name in ("_local_scalar_dense", "nonzero", "masked_select"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_gpu_would_be_waited_for_twice(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    """From pixels to boxes; besides these suppression and the labels, once each."""
    folded = build(build_detector).fold([f"word {i}" for i in range(80)])
    pixels = [torch.randint(256, (3, 128, 128), dtype=torch.uint8)]
    meta = dict(img_shape=(128, 128), ori_shape=(128, 128), scale_factor=(1.0, 1.0))
    with Stops() as stops, torch.no_grad():
        sample = DetDataSample(metainfo=meta)
        folded.test_step(dict(inputs=pixels, data_samples=[sample]))
    assert stops.names == ["nonzero", "nonzero"]


# ------------------------------------------------------------ very many words


def test_scores_in_parts_are_those_at_once(
    build_detector: Callable[..., KDEOVDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(build_detector)
    words = [f"word {i}" for i in range(300)]
    model.bbox_head.test_cfg.update(nms_pre=3000, max_per_img=300, score_thr=0.001)
    expected = found(model, IMAGES, words)
    monkeypatch.setattr("kdeov_mm.models.ov_head.PART", 10_000)
    monkeypatch.setattr(postprocess, "PART", 10_000)
    same(found(model, IMAGES, words), expected, 1e-5)
    same(found(model.fold(words), IMAGES), expected, 1e-4)


@pytest.mark.parametrize("words", [3, 64, 127, 128, 200])
@pytest.mark.parametrize("most", [1, 50, 10**6])
def test_above_gives_at_least_the_best(words: int, most: int) -> None:
    levels = [torch.randn(n, words) for n in (40, 10, 3)]
    values, where = above(levels, 0.5, most)
    flat = torch.cat(levels)
    assert torch.equal(flat[where[:, 0], where[:, 1]], values)
    kept = flat[flat > 0.5].sort(descending=True).values[:most]
    assert torch.equal(values.sort(descending=True).values[: len(kept)], kept)
    assert len({tuple(p) for p in where.tolist()}) == len(where)
    if most >= flat.numel():
        assert len(values) == len(kept)


@pytest.mark.parametrize("form", ["plain", "unit length", "group norm, unit length"])
def test_candidate_locations_keep_the_best_boxes(
    form: str, build_detector: Callable[..., KDEOVDetector]
) -> None:
    """Of 1344 locations, 300 hold at least 0.99 of the best 300 boxes."""
    model = build(build_detector, form)
    model.bbox_head.test_cfg.update(nms_pre=3000, max_per_img=300, score_thr=0.001)
    words = [f"{a} {b}" for a in ("red", "old", "big") for b in range(400)]
    images = torch.rand(2, 3, 256, 256)
    exact = found(model.fold(words), images)
    near = found(model.fold(words, candidates=300), images)
    for one, other in zip(exact, near, strict=True):
        these, those = (
            {(label, *box) for label, box in zip(r.labels.tolist(), r.bboxes.tolist())}
            for r in (one, other)
        )
        assert len(one) == 300 and len(these & those) >= 0.99 * len(these)


@pytest.mark.parametrize("form", ["plain", "unit length", "group norm, unit length"])
def test_all_locations_are_the_exact_result(
    form: str, build_detector: Callable[..., KDEOVDetector]
) -> None:
    model = build(build_detector, form)
    same(
        found(model.fold(WORDS, candidates=10**6), IMAGES),
        found(model.fold(WORDS), IMAGES),
        1e-5,
    )


def test_only_the_chosen_locations_are_scored() -> None:
    rows = [torch.randn(6, 4), torch.randn(3, 4)]
    layers = [Linear1x1(torch.randn(5, 4), torch.randn(5)) for _ in rows]
    cfg = dict(score_thr=0.0)
    _, where = score_in_parts(rows, layers, None, torch.tensor([7, 2]), cfg)
    assert set(where[:, 0].tolist()) == {2, 7}
    assert len(where) == 10 and max_boxes(cfg) == 100000


def test_the_objectness_finds_where_words_fire() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(500, 8)
    rows = torch.zeros(50, 8)
    rows[[3, 30]] = 3 * kernel[[7, 400]]
    layers = [Linear1x1(kernel, torch.zeros(500))]
    where = CandidateLocations(kernel, number=2, probes=64)([rows], layers)
    assert set(where.tolist()) == {3, 30}


def test_a_wide_cluster_is_not_overlooked() -> None:
    """Its mean is shorter than its members, and would score a member's place low."""
    wide = torch.tensor([[0.64, 0.77, 0.0], [0.64, -0.77, 0.0]])
    narrow = torch.tensor([[0.0, 0.0, 1.0]]).repeat(10, 1)
    kernel = torch.cat([wide, narrow])
    places = CandidateLocations(kernel, number=1, probes=2)
    assert places.cluster[0] == places.cluster[1] != places.cluster[2]
    rows = [torch.stack([0.5 * narrow[0], wide[0]])]
    assert places(rows, [Linear1x1(kernel, torch.zeros(12))]).tolist() == [1]


@pytest.mark.parametrize(
    "change", [dict(multi_label=False), dict(min_bbox_size=3), dict(max_per_img=-1)]
)
def test_candidates_need_a_plain_suppression(
    change: dict[str, Any], build_detector: Callable[..., KDEOVDetector]
) -> None:
    model = build(build_detector)
    model.bbox_head.test_cfg.update(change)
    with pytest.raises(ValueError, match="candidates needs a test_cfg"):
        model.fold(WORDS, candidates=10)


@pytest.mark.parametrize("candidates", [None, 10])
def test_half_precision(
    candidates: int | None, build_detector: Callable[..., KDEOVDetector]
) -> None:
    model = build(build_detector).bfloat16()
    images = IMAGES.bfloat16()
    assert len(found(model, images, WORDS)[0]) > 50
    folded = model.fold(WORDS, candidates=candidates)
    assert {p.dtype for p in folded.parameters()} == {torch.bfloat16}
    assert len(found(folded, images)[0]) > 10


def test_images_of_any_kind_through_the_api(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    model = build(build_detector)
    pipeline = [dict(type="Resize", scale=(96, 96), keep_ratio=True)]
    loader = dict(dataset=dict(pipeline=pipeline))
    model.cfg = Config(dict(test_dataloader=loader))
    image = torch.randint(0, 255, (60, 90, 3), dtype=torch.uint8).numpy()
    words = (WORDS[0], [WORDS[1], "azure box"])
    (one,) = KDEOV(model).open_vocabulary_detect(image, words)
    (other,) = KDEOV(model.fold(words)).open_vocabulary_detect(image)
    assert one["names"] == other["names"] and len(one["names"]) > 5
    torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-2, rtol=0)


def test_it_is_a_detector_of_mmdet(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    folded = build(build_detector).fold(WORDS)
    assert isinstance(folded, FoldedDetector)
    data = dict(
        inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)],
        data_samples=samples((64, 64), None)[:1],
    )
    assert folded.test_step(data)[0].pred_instances.label_names
