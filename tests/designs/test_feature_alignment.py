"""The losses of feature alignment, and a training that learns from them."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdeov_mm import (
    CrossModalAlignmentLoss,
    DistillationLoss,
    FeatureAlignmentLoss,
    KDEOVModel,
    create_clip_model,
    train_feature_alignment,
)
from kdeov_mm.models import StudentBatch

WORDS = ("solid red ring", "blue star", "green cross", "dotted yellow square")
COLOURS = ((1.0, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, -1))


def made_data() -> tuple[Tensor, list[str]]:
    """Eight images (8, 3, 64, 64), two of each colour, and a sentence for each."""
    torch.manual_seed(0)
    images = torch.tensor(COLOURS * 2)[..., None, None].expand(-1, -1, 64, 64)
    return images + 0.2 * torch.randn(8, 3, 64, 64), [*WORDS * 2]


@pytest.fixture
def model() -> KDEOVModel:
    return KDEOVModel("shapes")


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


# ---------------------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_distillation_is_zero_for_equal_directions_and_else_the_distance(
    kind: str,
) -> None:
    loss = DistillationLoss(loss_type=kind)
    student, teacher = torch.randn(5, 16), torch.randn(5, 16)
    assert loss(student, 3 * student).item() == pytest.approx(0, abs=1e-6)
    one, other = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    cosine = 1 - (one * other).sum(1).mean()
    # of unit vectors: |a - b|^2 = 2 - 2 <a, b>; D times the mean squared error
    wanted = cosine if kind == "cosine" else 16 * F.mse_loss(one, other)
    torch.testing.assert_close(loss(student, teacher), wanted)


def test_alignment_is_cross_entropy_in_both_directions() -> None:
    images, texts = unit(4, 16), unit(4, 16)
    logits, own = images @ texts.T / 0.07, torch.arange(4)
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    loss = CrossModalAlignmentLoss(temperature=0.07)
    torch.testing.assert_close(loss(2 * images, 3 * texts), wanted)
    scale = torch.tensor(1 / 0.07)
    torch.testing.assert_close(
        CrossModalAlignmentLoss(9.0)(images, texts, scale), wanted
    )


def test_equal_texts_are_no_negatives() -> None:
    text = unit(1, 16).expand(4, 16)
    assert CrossModalAlignmentLoss()(unit(4, 16), text).item() == pytest.approx(0)


def test_feature_alignment_is_the_weighted_sum() -> None:
    student, teacher, text = unit(4, 16), unit(4, 16), unit(4, 16)
    loss = FeatureAlignmentLoss(
        distillation_weight=2.0,
        alignment_weight=0.5,
        distillation_type="l2",
        temperature=0.1,
    )
    losses = loss(
        student_image_embeddings=student,
        teacher_image_embeddings=teacher,
        text_embeddings=text,
    )
    distillation = DistillationLoss("l2")(student, teacher)
    alignment = CrossModalAlignmentLoss(0.1)(student, text)
    assert losses["distillation_loss"] == distillation
    assert losses["alignment_loss"] == alignment
    torch.testing.assert_close(losses["total_loss"], 2 * distillation + 0.5 * alignment)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_type is one of.*'l2'.*got 'l1'"):
        DistillationLoss("l1")
    with pytest.raises(ValueError, match=r"one text for each.*\(4, 16\).*\(3, 16\)"):
        CrossModalAlignmentLoss()(unit(4, 16), unit(3, 16))


def test_they_are_the_losses_of_a_training_by_config(model: KDEOVModel) -> None:
    """What the global head of the mm model learns, from samples with captions."""
    images, sentences = made_data()
    inputs, samples = model.prepare(images)
    for sample, sentence in zip(samples, sentences):
        sample.set_metainfo(dict(caption=sentence))
    detector = model.detector
    student = StudentBatch(detector.extract_feat(inputs), samples)
    by_config = detector.global_head.loss(
        student, detector.teacher_batch(inputs, samples)
    )
    losses = FeatureAlignmentLoss()(
        model.encode_image(images),
        model.teacher_features(images),
        model.encode_text(sentences),
        detector.global_head.classifier.scale(),
    )
    torch.testing.assert_close(
        losses["distillation_loss"], by_config["loss_global_cosine"]
    )
    torch.testing.assert_close(
        losses["alignment_loss"], by_config["loss_global_contrast"]
    )


def test_the_teacher_sees_no_padding(model: KDEOVModel) -> None:
    images = torch.rand(2, 3, 70, 90)
    mean, std = (torch.tensor([v] * 3).view(3, 1, 1) for v in (0.5, 0.25))
    wanted = model.detector.teacher(images * std + mean)
    torch.testing.assert_close(model.teacher_features(images), wanted)


# -------------------------------------------------------------------------- training


@pytest.mark.parametrize("as_tokens", [False, True])
def test_training_lowers_the_loss_and_names_the_images(
    model: KDEOVModel, as_tokens: bool
) -> None:
    images, sentences = made_data()
    texts: Any = sentences
    if as_tokens:
        texts = model.tokenize(sentences)
    before = copy.deepcopy(model.state_dict())
    losses = train_feature_alignment(
        model=model,
        dataloader=[(images, texts)],
        num_epochs=12,
        learning_rate=1e-3,
        device="cpu",
    )
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]
    assert not model.training  # as before
    # the image side changed, and nothing else
    changed = {
        name.split(".")[1]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"backbone", "neck", "global_head"}


def test_a_dataloader_of_pairs_serves_as_it_is(model: KDEOVModel) -> None:
    loader = torch.utils.data.DataLoader([*zip(*made_data())], batch_size=4)
    model.train()
    losses = train_feature_alignment(model, loader, num_epochs=2)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert model.training
    with pytest.raises(ValueError, match="gave no batches"):
        train_feature_alignment(model, [])


def test_the_weights_of_the_losses_are_the_callers(model: KDEOVModel) -> None:
    nothing = FeatureAlignmentLoss(distillation_weight=0.0, alignment_weight=0.0)
    losses = train_feature_alignment(model, [made_data()], 1, loss=nothing)
    assert losses == [0.0]


def test_the_other_documents_model_trains_too() -> None:
    model = create_clip_model(clip_model_name="shapes", backbone_pretrained=None)
    losses = train_feature_alignment(model, [made_data()], 3, learning_rate=1e-3)
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_finite_stops_the_training(model: KDEOVModel) -> None:
    images, sentences = made_data()
    next(model.student.backbone.parameters()).data[0, 0, 0, 0] = torch.inf
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(FloatingPointError, match="not finite: lower learning_rate"):
        train_feature_alignment(model, [(images, sentences)])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
    assert not model.training


def test_a_text_for_each_image(model: KDEOVModel) -> None:
    images, sentences = made_data()
    with pytest.raises(ValueError, match="one text for each image"):
        train_feature_alignment(model, [(images, sentences[:5])])
