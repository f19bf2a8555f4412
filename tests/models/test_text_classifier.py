"""One text classifier: temperature, background, synonyms, folding, old checkpoints."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdeov_mm.models import (
    GlobalHead,
    HeadInput,
    ImageDistillation,
    KDEOVDetector,
    TextClassifier,
    TextEmbeds,
)
from kdeov_mm.models.text_classifier import max_over_synonyms

from ..conftest import EMBED_DIMS, enliven

BEYOND = math.log(100) + 2
OWNER = torch.tensor([0, 0, 1, 2, 2, 2])
ADAPTER = dict(type="mmdet.ClassFiLM", text_dims=EMBED_DIMS)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def moved(classifier: TextClassifier) -> TextClassifier:
    """As after training: no parameter is where it began."""
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return classifier


# ----------------------------------------------------------------- temperature


def test_logits_are_cosines_times_the_temperature() -> None:
    embeds, text = unit(4, EMBED_DIMS), unit(3, EMBED_DIMS)
    classifier = TextClassifier()
    assert classifier.scale().item() == pytest.approx(1 / 0.07)
    torch.testing.assert_close(
        classifier(embeds, TextEmbeds(text)), embeds @ text.T / 0.07
    )


def test_beyond_the_limit_the_parameter_itself_is_clamped_in_training() -> None:
    classifier = TextClassifier().train()
    classifier.logit_scale.data.fill_(BEYOND)
    assert classifier.scale().item() == pytest.approx(100)
    assert classifier.logit_scale.item() == pytest.approx(math.log(100))
    classifier.logit_scale.data.fill_(1.5)
    assert classifier.scale().item() == pytest.approx(math.exp(1.5))
    assert classifier.logit_scale.item() == 1.5


def test_the_gradient_does_not_vanish_beyond_the_limit() -> None:
    """A temperature that is clamped inside of exp never comes back."""
    classifier = TextClassifier().train()
    classifier.logit_scale.data.fill_(BEYOND)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        classifier.scale().backward()
        assert classifier.logit_scale.grad is not None
        wanted = pytest.approx(classifier.scale().item())
        assert classifier.logit_scale.grad.item() == wanted
        optimizer.step()
        assert classifier.logit_scale < math.log(100) - 0.05 * (step + 1)


def test_a_step_may_ask_for_the_temperature_twice() -> None:
    """A contrast of captions and a calibration of crops share one temperature."""
    classifier = TextClassifier().train()
    classifier.logit_scale.data.fill_(BEYOND)
    total = classifier.scale() + 2 * classifier.scale()
    total = total + classifier(unit(2, 8), TextEmbeds(unit(3, 8))).sum()
    total.backward()
    assert classifier.logit_scale.grad is not None
    assert classifier.logit_scale.grad.isfinite()


@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_testing_does_not_change_the_parameter(adapter: dict[str, Any] | None) -> None:
    classifier = TextClassifier(num_biases=2, adapter=adapter).eval()
    classifier.logit_scale.data.fill_(BEYOND)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    text = unit(3, EMBED_DIMS)
    classifier(unit(4, EMBED_DIMS), TextEmbeds(text))
    classifier.layers(text)
    assert classifier.scale().item() == pytest.approx(100)
    after = classifier.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_frozen_temperature_is_left_alone_in_training() -> None:
    classifier = TextClassifier().train().requires_grad_(False)
    classifier.logit_scale.fill_(BEYOND)
    assert classifier.scale().item() == pytest.approx(100)
    assert classifier.logit_scale.item() == pytest.approx(BEYOND)


def test_a_temperature_that_nothing_teaches_is_no_parameter() -> None:
    classifier = TextClassifier(learn_scale=False)
    assert not list(classifier.parameters())
    assert classifier.state_dict()["logit_scale"] == pytest.approx(math.log(1 / 0.07))


# ------------------------------------------------------------------ background


def test_the_background_comes_last() -> None:
    classifier = moved(TextClassifier(EMBED_DIMS, background=True))
    embeds, text = unit(4, EMBED_DIMS), unit(3, EMBED_DIMS)
    logits = classifier(embeds, TextEmbeds(text))
    assert logits.shape == (4, 4)
    torch.testing.assert_close(logits[:, :3], classifier.scale() * embeds @ text.T)
    direction = F.normalize(classifier.background, dim=0)
    torch.testing.assert_close(logits[:, 3], classifier.scale() * (embeds @ direction))
    reversed_ = classifier(embeds, TextEmbeds(text.flip(0)))
    torch.testing.assert_close(reversed_[:, 3], logits[:, 3])


def test_the_background_is_learnt() -> None:
    classifier = TextClassifier(EMBED_DIMS, background=True).train()
    logits = classifier(unit(4, EMBED_DIMS), TextEmbeds(unit(3, EMBED_DIMS)))
    F.cross_entropy(logits, torch.tensor([0, 3, 2, 3])).backward()
    for parameter in classifier.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_a_background_comes_after_the_synonyms_too() -> None:
    classifier = moved(TextClassifier(EMBED_DIMS, background=True))
    embeds, text = unit(4, EMBED_DIMS), unit(6, EMBED_DIMS)
    one = classifier(embeds, TextEmbeds(text))
    several = classifier(embeds, TextEmbeds(text, OWNER))
    assert several.shape == (4, 4)
    torch.testing.assert_close(several[:, 3], one[:, 6])


def test_a_background_needs_its_dimension() -> None:
    with pytest.raises(ValueError, match="background needs embed_dims"):
        TextClassifier(background=True)


# --------------------------------------------------------------- centred words


def alike(number: int) -> Tensor:
    """Words as a real CLIP embeds them: much is common to all."""
    return F.normalize(unit(number, EMBED_DIMS) + 2 * unit(1, EMBED_DIMS), dim=-1)


def test_words_lose_what_they_share_and_keep_unit_length() -> None:
    text, embeds = alike(40), unit(4, EMBED_DIMS)
    classifier = TextClassifier(EMBED_DIMS, centred=True).train()
    logits = classifier(embeds, TextEmbeds(text))
    left = F.normalize(text - text.mean(0), dim=-1)
    torch.testing.assert_close(logits, embeds @ left.T / 0.07)
    # as alike as random ones
    assert (text @ text.T).mean() > 0.5
    assert (left @ left.T).mean() < 0.1


def test_the_mean_is_that_of_the_first_step_and_part_of_the_checkpoint() -> None:
    first, later, embeds = alike(40), alike(30), unit(4, EMBED_DIMS)
    classifier = TextClassifier(EMBED_DIMS, centred=True).train()
    for text in (first, later):
        classifier(embeds, TextEmbeds(text))
    torch.testing.assert_close(classifier.centre, first.mean(0))
    # one that is resumed, or begins with these weights: a single word is enough
    other = TextClassifier(EMBED_DIMS, centred=True)
    other.load_state_dict(classifier.state_dict())
    other.train()(embeds, TextEmbeds(later[:1]))
    assert torch.equal(other.centre, classifier.centre)


def test_few_words_have_no_mean_and_an_untrained_student_has_none() -> None:
    classifier = TextClassifier(EMBED_DIMS, centred=True)
    text, embeds = unit(19, EMBED_DIMS), unit(4, EMBED_DIMS)
    plain = TextClassifier()(embeds, TextEmbeds(text))
    torch.testing.assert_close(classifier.eval()(embeds, TextEmbeds(text)), plain)
    with pytest.raises(ValueError, match="20 at least, and there are 19"):
        classifier.train()(embeds, TextEmbeds(text))
    with pytest.raises(ValueError, match="centred needs embed_dims"):
        TextClassifier(centred=True)


def test_checkpoints_without_centred_words_have_no_mean() -> None:
    assert "centre" not in TextClassifier(EMBED_DIMS).state_dict()


# -------------------------------------------------------------------- synonyms


def test_a_class_scores_what_the_best_of_its_words_does() -> None:
    classifier, text = moved(TextClassifier()), unit(6, EMBED_DIMS)
    embeds = unit(5, EMBED_DIMS)
    words = classifier(embeds, TextEmbeds(text))
    classes = classifier(embeds, TextEmbeds(text, OWNER))
    best = [words[:, k == OWNER].amax(1) for k in range(3)]
    assert torch.equal(classes, torch.stack(best, 1))


def test_synonyms_of_maps_are_those_of_their_locations() -> None:
    maps = torch.randn(2, 6, 4, 3)
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    wanted = max_over_synonyms(rows, OWNER).unflatten(0, (2, 4, 3))
    for number in (None, 3):
        got = max_over_synonyms(maps, OWNER, number)
        assert torch.equal(got, wanted.permute(0, 3, 1, 2))


# --------------------------------------------------------------------- folding


@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_layers_say_what_the_classifier_says_and_add_the_levels_bias(
    adapter: dict[str, Any] | None,
) -> None:
    classifier = moved(TextClassifier(num_biases=2, adapter=adapter)).eval()
    embeds, text = unit(4, EMBED_DIMS), unit(5, EMBED_DIMS)
    plain = classifier(embeds, TextEmbeds(text))
    for layer, bias in zip(classifier.layers(text), classifier.bias, strict=True):
        logits = layer(embeds[..., None, None])[..., 0, 0]
        torch.testing.assert_close(logits, plain + bias)


def test_a_classifier_without_biases_has_no_levels() -> None:
    with pytest.raises(ValueError, match="num_biases"):
        TextClassifier().layers(unit(2, 8))


# ------------------------------------------------------------- old checkpoints


def as_of_old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as version 0.1.0 wrote it, temperature and bias in the head."""
    names = {"logit_scale": "log_scale"}
    old = {}
    for key, value in state.items():
        before, found, name = key.rpartition("classifier.")
        if not found:
            before, found, rest = key.partition("classifier.adapter.")
            name = f"adapter.{rest}" if found else key
        old[(before if found else "") + names.get(name, name)] = value
    assert len(old) == len(state)
    assert not any("classifier" in key or "logit_scale" in key for key in old)
    return old


def test_an_old_detection_head_is_read(
    build_detector: Callable[..., KDEOVDetector],
) -> None:
    def build() -> KDEOVDetector:
        changes = {"bbox_head.head_module.adapter": ADAPTER}
        return enliven(build_detector(teacher=None, distill=None, **changes))

    model, other = build(), build()
    moved(model.bbox_head.head_module.classifier)
    old = as_of_old(model.state_dict())
    head = "bbox_head.head_module"
    names = {f"{head}.log_scale", f"{head}.bias", f"{head}.adapter.modulate.0.weight"}
    assert names <= old.keys()
    text = TextEmbeds(unit(4, EMBED_DIMS))

    def logits(detector: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)
        with torch.no_grad():
            feats = detector.extract_feat(torch.rand(1, 3, 64, 64))
            return detector.bbox_head(HeadInput(feats, text))[0]

    wanted = logits(model)
    assert not torch.equal(logits(other)[0], wanted[0])
    other.load_state_dict(old)  # strict: no key is missing, none is left
    assert all(torch.equal(a, b) for a, b in zip(logits(other), wanted, strict=True))
    # the head module by itself, too
    own = {k.removeprefix(f"{head}."): v for k, v in old.items() if k.startswith(head)}
    build().bbox_head.head_module.load_state_dict(own)


@pytest.mark.parametrize("kind", [GlobalHead, ImageDistillation])
@pytest.mark.parametrize("contrast", [None, dict(type="InfoNCE")])
def test_an_old_global_head_is_read(
    kind: type[ImageDistillation], contrast: dict[str, Any] | None
) -> None:
    """Its temperature is a parameter, or a buffer where nothing teaches it."""
    projection = dict(
        type="GlobalProjection", in_channels=[64, 128], embed_dims=EMBED_DIMS
    )
    head, other = (kind(projection, contrast=contrast).eval() for _ in range(2))
    head.classifier.logit_scale.data.fill_(1.25)
    old = as_of_old(head.state_dict())
    assert old["log_scale"] == 1.25
    other.load_state_dict(old)
    feats, filled = [torch.randn(2, c, 4, 4) for c in (64, 128)], torch.ones(2, 2)
    text = TextEmbeds(unit(3, EMBED_DIMS))
    embeds, wanted = other.embed(feats, filled), head.embed(feats, filled)
    assert torch.equal(embeds, wanted)
    assert torch.equal(other.classifier(embeds, text), head.classifier(wanted, text))
    assert other.classifier.logit_scale == 1.25


def test_a_new_state_dict_keeps_its_names() -> None:
    projection = dict(type="GlobalProjection", in_channels=[64], embed_dims=EMBED_DIMS)
    head = GlobalHead(projection, contrast=dict(type="InfoNCE"))
    state = head.state_dict()
    assert "classifier.logit_scale" in state and "log_scale" not in state
    head.load_state_dict(state)


def test_a_temperature_that_was_driven_beyond_the_limit_comes_back() -> None:
    """200 steps of pairs that any temperature suits, then 200 of noisy ones."""
    classifier = TextClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.05, weight_decay=0)
    text, labels = unit(16, 32), torch.arange(16)
    noisy = F.normalize(text + unit(16, 32) * 2, dim=1)
    scales = []
    for embeds in [text] * 200 + [noisy] * 200:
        optimizer.zero_grad()
        loss = F.cross_entropy(classifier(embeds, TextEmbeds(text)), labels)
        # the first pairs alone would rest where their loss is 0
        (loss - classifier.logit_scale * (embeds is text)).backward()
        optimizer.step()
        scales.append(classifier.scale().item())
    assert scales[199] == pytest.approx(100)
    assert scales[-1] < 30
