"""The two-stage student: its losses, its vote, and what it shares with the others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor

from kdeov_mm import KDEOV
from kdeov_mm.models import StudentBatch, TextEmbeds
from kdeov_mm.models.vild import ViLDBBoxHead, ViLDDetector, WordedMaps, _as_regions

from ..conftest import EMBED_DIMS, WORDS, make_sample
from ..test_configs import OneStep, fill_store

BOXES = ((4.0, 6, 40, 50), (20.0, 10, 60, 44))
CONFIGS = ("r18", "text_r18", "image_r18", "ensemble_r18", "oracle_r18", "kdeov_r18")


@pytest.fixture
def build(load_config: Callable[..., Config]) -> Callable[..., ViLDDetector]:
    """The student of a config around the tiny CLIP; it keeps all of its boxes."""

    def make(name: str = "r18", **changes: Any) -> ViLDDetector:
        cfg = load_config(f"../vild/vild_{name}_shapes.py")
        cfg.model.test_cfg.rcnn.update(score_thr=0.0)
        cfg.merge_from_dict({f"model.{key}": v for key, v in changes.items()})
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.cfg = cfg
        return model

    return make


def batch(model: Any, number: int = 2, **meta: Any) -> dict[str, Any]:
    """Noise images, with two boxes each, through the model's preprocessor."""
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(number)]
    samples = [make_sample(BOXES, (1, 3), **meta) for _ in images]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), True)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


# ------------------------------------------------------------------------ losses


def test_the_loss_of_three_proposals_is_the_one_by_hand(
    build: Callable[..., ViLDDetector],
) -> None:
    head = build().roi_head
    # an object of the second of two words, one of the first, and background
    given = sampled(
        [[5.0, 5, 41, 52], [19, 9, 61, 45], [0, 0, 10, 10]], BOXES, [1, 0], 2
    )
    priors = given.priors
    embeds, text = unit(3, EMBED_DIMS), TextEmbeds(unit(2, EMBED_DIMS))
    deltas = torch.randn(3, 4)
    logits = head.bbox_head.logits(embeds, text)
    head.bbox_head.num_classes = 2
    rois = F.pad(priors, (1, 0))
    losses = head.bbox_head.loss_and_target(
        logits, deltas, rois, [given], head.train_cfg
    )["loss_bbox"]
    # cosines over 0.01, the background's last, and the mean of -log of the shares
    background = head.bbox_head.classifier.background
    vectors = torch.cat([text.vectors, background[None] / background.norm()])
    by_hand = 0.0
    for embed, label in zip(embeds, (1, 0, 2)):
        cosines = [float(embed @ vector) / 0.01 for vector in vectors]
        top = max(cosines)
        total = top + math.log(sum(math.exp(c - top) for c in cosines))
        by_hand += (total - cosines[label]) / 3
    assert losses["loss_cls"].item() == pytest.approx(by_hand, rel=1e-5)
    # boxes: L1 of the two objects' offsets, over all three
    wanted = torch.empty(2, 4)
    for row, (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(
        wanted, priors, given.pos_gt_bboxes
    ):
        w, h, u, v = x2 - x1, y2 - y1, u2 - u1, v2 - v1
        row[0] = ((u1 + u2) - (x1 + x2)) / 2 / w / 0.1
        row[1] = ((v1 + v2) - (y1 + y2)) / 2 / h / 0.1
        row[2], row[3] = (u / w).log() / 0.2, (v / h).log() / 0.2
    loss = head.bbox_head.loss_bbox(deltas[:2], wanted, avg_factor=3)
    torch.testing.assert_close(losses["loss_bbox"], loss)


def sampled(priors: Any, boxes: Any, labels: Any, positive: int) -> SamplingResult:
    """Proposals of an image, the first ones matched to its boxes in their order."""
    order = torch.arange(len(priors))
    given = torch.where(order < positive, order + 1, 0)
    classes = torch.tensor([*labels, *[-1] * (len(priors) - positive)])
    return SamplingResult(
        pos_inds=order[:positive],
        neg_inds=order[positive:],
        priors=torch.tensor(priors),
        gt_bboxes=torch.tensor(boxes),
        assign_result=AssignResult(len(boxes), given, None, labels=classes),
        gt_flags=torch.zeros(len(priors), dtype=torch.uint8),
    )


def test_words_that_are_not_verified_are_not_in_the_softmax(
    build: Callable[..., ViLDDetector],
) -> None:
    model = build().train()
    head = model.roi_head
    inputs, text = torch.rand(2, 3, 64, 64), unit(4, EMBED_DIMS).requires_grad_()
    samples = [make_sample(), make_sample()]
    samples[1].set_metainfo(dict(verified=torch.tensor([True, False, False, False])))
    maps = model.worded(inputs, [("a",)] * 4, TextEmbeds(text), samples)
    head.bbox_head.num_classes = 4
    priors = [[5.0, 5, 41, 52], [0, 0, 10, 10]]
    # an object of the second image has a label that is not verified there (LVIS: not
    # all of its objects are labelled): it counts for its own proposal alone
    given = [sampled(priors, [BOXES[0]], [label], 1) for label in (3, 2)]
    logits = head.bbox_loss(maps, given)["cls_score"]
    assert logits[:2].isfinite().all()
    assert logits[2].isfinite().tolist() == [True, False, True, False, True]
    assert logits[3].isfinite().tolist() == [True, False, False, False, True]
    logits[2].softmax(0)[2].backward()
    assert text.grad is not None
    assert (text.grad[[1, 3]] == 0).all() and text.grad[[0, 2]].any()
    # at test time every word is asked
    rois = torch.tensor([[0, 0, 0, 20, 20], [1, 0, 0, 20, 20.0]])
    assert head.scores(maps, rois)[0].shape == (2, 4)


def test_the_image_loss_is_the_sum_of_absolute_differences(
    build: Callable[..., ViLDDetector],
) -> None:
    model = build().train()
    data = batch(model)
    boxes = [sample.gt_instances.bboxes for sample in data["data_samples"]]
    maps = model.worded(data["inputs"], [("a",)], TextEmbeds(unit(1, EMBED_DIMS)))
    embeds = model.roi_head.embed(maps, boxes)
    teacher = model.teacher_batch(data["inputs"], data["data_samples"])
    head = model.distill.region
    head.sources = ("truth",)
    student = StudentBatch(
        maps,
        data["data_samples"],
        regions=_as_regions([InstanceData(bboxes=b, scores=b[:, 0]) for b in boxes]),
        embed_boxes=lambda boxes: model.roi_head.embed(maps, boxes),
    )
    (loss,) = head.loss(student, teacher).values()
    targets = teacher.crops(boxes, (1.0, 1.5))
    # half of the sum over the dimensions, the mean over the regions
    torch.testing.assert_close(loss, (embeds - targets).abs().sum(1).mean() / 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_that_learns_gets_a_gradient(
    name: str, build: Callable[..., ViLDDetector]
) -> None:
    model = build(name).train()
    losses = model(**batch(model), mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    idle = {
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    }
    assert not idle


def test_the_image_head_alone_is_distilled(build: Callable[..., ViLDDetector]) -> None:
    model = build("ensemble_r18").train()
    losses = model(**batch(model), mode="loss")
    losses["loss_region_l1"].backward()
    learning = {n for n, p in model.roi_head.named_parameters() if p.grad is not None}
    assert learning and all(name.startswith("image_head.") for name in learning)


def test_objects_without_a_label_are_left_out_where_that_is_asked(
    build: Callable[..., ViLDDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = {}
    for name in ("r18", "kdeov_r18"):
        model = build(name).train()

        def keep(x: Any, proposals: Any, samples: Any, name: str = name) -> Any:
            ignored[name] = [len(s.ignored_instances.bboxes) for s in samples]
            return {}

        monkeypatch.setattr(model.roi_head, "loss", keep)
        model(**batch(model), mode="loss")
    assert ignored["r18"] == [0, 0] and all(ignored["kdeov_r18"])


def test_stored_proposals_are_embedded_as_live_ones(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config("../vild/vild_stored_r18_shapes.py")
    cfg.work_dir = str(tmp_path)
    fill_store(cfg, tmp_path)
    runner, once = Runner.from_cfg(cfg), OneStep()
    runner.register_hook(once)
    runner.train()
    assert once.losses["loss_region_l1"] > 0
    # the boxes of the store, embedded live
    model, loader = runner.model, runner.train_dataloader
    live = dict(type="CLIPImageTeacher", model=cfg.model.text_encoder.model)
    data = model.data_preprocessor(next(iter(loader)), True)
    stored = model.teacher_batch(**renamed(data))
    model.teacher = MODELS.build(live)
    fresh = model.teacher_batch(**renamed(data))
    boxes = [stored.stored_boxes(i) for i in range(len(data["inputs"]))]
    assert sum(map(len, boxes)) > 0
    torch.testing.assert_close(
        stored.crops(boxes, (1.0,)), fresh.crops(boxes, (1.0,)), rtol=0, atol=1e-3
    )


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    return dict(inputs=data["inputs"], samples=data["data_samples"])


def test_objects_without_a_label_spare_the_background_alone() -> None:
    assigner = TASK_UTILS.build(
        dict(type="mmdet.SparingAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5)
    )
    priors = [[41.0, 41, 80, 80], [28, 28, 112, 108], [0, 0, 20, 20], [90, 0, 120, 30]]
    proposals = InstanceData(priors=torch.tensor(priors))
    truth = InstanceData(
        bboxes=torch.tensor([[40.0, 40, 80, 80]]), labels=torch.tensor([0])
    )
    none = truth[:0]
    marked = InstanceData(
        bboxes=torch.tensor([[30.0, 30, 110, 110]]), unlabelled=torch.tensor([True])
    )
    # a box about a labelled object leaves the object, and spares the background there
    for given, first in ((truth, 1), (none, 0)):
        assigned = assigner.assign(proposals, given, marked).gt_inds
        assert assigned.tolist() == [first, -1, 0, 0]
    # ignored boxes of the data set are mmdet's
    crowd = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 30, 30]]), unlabelled=torch.tensor([False])
    )
    assigner.ignore_iof_thr = 0.5
    assert assigner.assign(proposals, truth, crowd).gt_inds.tolist() == [1, 0, -1, 0]
    assert assigner.assign(proposals, truth).gt_inds.tolist() == [1, 0, 0, 0]


def test_an_image_head_that_nothing_teaches_does_not_train(
    build: Callable[..., ViLDDetector],
) -> None:
    model = build("ensemble_r18", teacher=None, distill=None).train()
    with pytest.raises(ValueError, match="would vote untaught"):
        model(**batch(model), mode="loss")


# ------------------------------------------------------------------------ boxes


def test_the_vote_is_the_formula(build: Callable[..., ViLDDetector]) -> None:
    head = build("ensemble_r18").roi_head.eval()
    words = tuple((word,) for word in (*sorted(head.base)[:2], "a new thing"))
    text, maps = TextEmbeds(unit(3, EMBED_DIMS)), [torch.rand(1, 64, 16, 16)] * 5
    x = WordedMaps(maps)
    x.words, x.text = words, text
    rois = torch.tensor([[0, 0, 0, 30, 30], [0, 8, 4, 60, 60.0]])
    scores, _ = head.scores(x, rois)
    feats = head._pooled(x, rois)
    by_text, by_image = (
        part.logits(part(feats)[0], text).double().softmax(1)
        for part in (head.bbox_head, head.image_head)
    )
    assert by_text.shape[1] == 4 and by_image.shape[1] == 3  # the background
    for i, a in enumerate((2 / 3, 2 / 3, 1 / 3)):
        wanted = by_text[:, i] ** a * by_image[:, i] ** (1 - a)
        torch.testing.assert_close(scores[:, i], wanted)


@pytest.mark.parametrize("name", ["r18", "image_r18", "ensemble_r18"])
def test_other_orders_of_the_words_and_other_batches_change_nothing(
    name: str, build: Callable[..., ViLDDetector]
) -> None:
    student = KDEOV(build(name))
    images = [torch.rand(3, 60, 80), torch.rand(3, 96, 64)]
    query = dict(score_threshold=0.0, nms_threshold=0.5)
    plain = student.open_vocabulary_detect(images, WORDS, **query)
    turned = student.open_vocabulary_detect(images, WORDS[::-1], **query)
    alone = [student.open_vocabulary_detect(i, WORDS, **query)[0] for i in images]
    assert all(len(found["boxes"]) for found in plain)
    for one, other, single in zip(plain, turned, alone):
        for key in ("boxes", "scores"):
            torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(one[key], single[key], rtol=1e-4, atol=1e-3)
        assert one["names"] == single["names"]


def test_sure_boxes_keep_their_order(build: Callable[..., ViLDDetector]) -> None:
    model = build().eval()
    head = model.roi_head
    maps = model.worded(
        torch.rand(1, 3, 64, 64), [("a",), ("b",)], TextEmbeds(unit(2, EMBED_DIMS))
    )
    # two boxes of one object: the second one is surer, both are nearly certain
    sure = torch.tensor([[18.0, 0, 0], [30, 0, 0]])
    head._bbox_forward = lambda x, rois: dict(
        cls_score=sure, bbox_pred=torch.zeros(2, 4)
    )
    boxes = torch.tensor([[10.0, 10, 40, 40], [12, 12, 42, 42]])
    found = InstanceData(bboxes=boxes, scores=torch.ones(2))
    metas = [make_sample().metainfo]
    (result,) = head.predict_bbox(maps, metas, [found], head.test_cfg)
    best = result[result.labels == 0]
    assert len(best) == 1
    torch.testing.assert_close(best.bboxes[0], boxes[1])


def test_synonyms_and_thresholds_of_a_call(build: Callable[..., ViLDDetector]) -> None:
    student = KDEOV(build(synonyms="max"))
    image = torch.rand(3, 64, 64)
    classes = [("red ball", "old house"), "tall tree"]
    (every,) = student.open_vocabulary_detect(image, classes, 0.0)
    assert {*every["labels"].tolist()} <= {0, 1}
    some = float(every["scores"].median())
    (few,) = student.open_vocabulary_detect(image, classes, some)
    assert 0 < len(few["scores"]) < len(every["scores"])
    assert (few["scores"] >= some).all()
    assert student.model.test_cfg.rcnn.score_thr == 0.0


def test_what_does_not_go_together_is_refused(
    build: Callable[..., ViLDDetector],
) -> None:
    with pytest.raises(ValueError, match="set `base`"):
        build("ensemble_r18", **{"roi_head.base": ()})
    with pytest.raises(ValueError, match="base classes.*'CocoDataset'"):
        build("ensemble_r18", **{"roi_head.base": "CocoDataset"})
    with pytest.raises(ValueError, match="lie in"):
        build(**{"roi_head.exponent": 1.5})
    with pytest.raises(ValueError, match="roi_head.bbox_head.embed_dims is 48"):
        build(**{"roi_head.bbox_head.embed_dims": 48})
    with pytest.raises(ValueError, match="background=True"):
        build(**{"roi_head.bbox_head.background": False})
    uncapped = KDEOV(build(**{"test_cfg.rcnn.max_per_img": -1}))
    with pytest.raises(ValueError, match="max_per_img of at least 1"):
        uncapped.open_vocabulary_detect(torch.rand(3, 64, 64), WORDS)
    unsuppressed = KDEOV(build(**{"test_cfg.rcnn.nms": None}))
    with pytest.raises(ValueError, match="nms=dict"):
        unsuppressed.open_vocabulary_detect(torch.rand(3, 64, 64), WORDS)
    with pytest.raises(ValueError, match="0.01 at least"):
        ViLDBBoxHead(8, temperature=0.001, in_channels=4, num_shared_fcs=1)
    dense = dict(type="DenseDistillation", distances=dict(l1=dict(type="L1Distance")))
    model = build(**{"distill.dense": dense}).train()
    with pytest.raises(ValueError, match="needs a student with locations"):
        model(**batch(model), mode="loss")


# --------------------------------------------------------------- half precision


@pytest.mark.parametrize("name", ["r18", "ensemble_r18"])
def test_half_precision_trains_and_finds_the_same(
    name: str, build: Callable[..., ViLDDetector]
) -> None:
    model = build(name).train()
    data = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**data, mode="loss")
    total, terms = model.parse_losses(losses)
    total.backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(p.grad.isfinite().all() for p in model.roi_head.parameters())
    # scores of the same boxes: RPNs in half precision propose others
    model.eval()
    maps = model.worded(data["inputs"], [("a",)] * 3, TextEmbeds(unit(3, EMBED_DIMS)))
    rois = torch.tensor([[0, 0, 0, 30, 30], [1, 8, 4, 60, 60.0]])
    full, _ = model.roi_head.scores(maps, rois)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = model.roi_head.scores(maps, rois)
    torch.testing.assert_close(half, full, rtol=0.3, atol=0.02)


def test_raw_outputs_have_proposals_within_the_image(build: Callable) -> None:
    model = build(teacher=None, distill=None).eval()
    samples = [make_sample(words=[(w,) for w in WORDS], shape=(64, 96))] * 2
    with torch.no_grad():
        said = model(torch.rand(2, 3, 64, 96), samples, mode="tensor")
    image, x1, y1, x2, y2 = said["proposals"].T
    assert {*image.tolist()} == {0, 1} and min(x1.min(), y1.min()) >= 0
    # some reach the borders, which are those of the image
    assert (x2.max(), y2.max()) == (96, 64)
    logits, deltas = said["predictions"]
    assert logits[0].shape == (1, len(WORDS), len(image))
    assert deltas.shape == (len(image), 4)
