"""create_clip_model: the calls of its document, and what they promise."""

from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from kdeov_mm import create_clip_model
from kdeov_mm.designs import ResNetCLIP

from ..conftest import ROOT

CONTEXT = 16  # tokens of the built-in CLIP
DIMS = 128


@pytest.fixture(scope="module")
def model() -> ResNetCLIP:
    return create_clip_model(
        device="cpu", clip_model_name="shapes", backbone_pretrained=None
    )


def test_the_calls_of_the_document(model: ResNetCLIP) -> None:
    images = torch.randn(8, 3, 64, 64)
    input_ids = torch.randint(0, 49408, (8, CONTEXT))
    attention_mask = torch.ones(8, CONTEXT)
    image_embeds, text_embeds = model(images, input_ids, attention_mask)
    assert image_embeds.shape == text_embeds.shape == (8, DIMS)
    for embeds in (image_embeds, text_embeds):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(8))
    assert torch.equal(model.encode_image(images), image_embeds)
    assert torch.equal(model.encode_text(input_ids, attention_mask), text_embeds)
    assert torch.equal(model.encode_text(input_ids), text_embeds)


def test_the_image_side_alone_is_trained(model: ResNetCLIP) -> None:
    given = {id(p) for p in model.get_trainable_parameters()}
    assert given == {id(p) for p in model.parameters()}
    image_embeds, text_embeds = model(torch.randn(2, 3, 64, 64), ["a ring", "a star"])
    (image_embeds * text_embeds).sum().backward()
    assert model.student.backbone.conv1.weight.grad.any()
    tower = model.student.text_encoder._load()
    assert not any(p.requires_grad for p in tower.parameters())
    assert {k.split(".")[1] for k in model.state_dict()} == {"backbone", "global_head"}
    model.zero_grad()


def test_the_summary_is_printed(
    model: ResNetCLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    model.print_parameter_summary()
    assert model.student.parameter_summary() in capsys.readouterr().out


def test_what_the_mask_hides_and_what_is_missing_count_for_nothing(
    model: ResNetCLIP,
) -> None:
    ids = model.tokenize(["a red ring", "a blue star on a table"])
    wanted = model.encode_text(ids)
    ends = ids.argmax(1) + 1
    mask = torch.arange(CONTEXT) < ends[:, None]
    junk = torch.where(mask, ids, 49407)
    assert torch.equal(model.encode_text(junk, mask), wanted)
    # padded to the longest sentence, by a tokenizer that pads with the end token
    length = int(ends.max())
    short = model.encode_text(junk[:, :length], mask[:, :length].long())
    assert torch.equal(short, wanted)
    assert torch.equal(
        model.encode_text(["a red ring", "a blue star on a table"]), wanted
    )


@pytest.mark.parametrize(
    "mask, message",
    [
        ([[0, 1, 1, 1], [1, 1, 1, 1]], "hides tokens before others.*at the right"),
        ([[1, 1, 0, 1], [1, 1, 1, 1]], "hides tokens before others"),
        ([[1, 1, 1, 1]], r"attention_mask \(2, 4\).*got \(1, 4\)"),
    ],
)
def test_other_masks_are_refused(model: ResNetCLIP, mask: Any, message: str) -> None:
    ids = model.tokenize(["ring", "star"])[:, :4]
    with pytest.raises(ValueError, match=message):
        model.encode_text(ids, torch.tensor(mask))


def test_it_is_the_model_of_the_configs(model: ResNetCLIP) -> None:
    cfg = Config.fromfile(
        ROOT / "configs/_base_/models/image_text_r50.py", lazy_import=False
    )
    for tower in (cfg.model.text_encoder, cfg.model.teacher):
        tower.update(model="shapes", pretrained=None)
    cfg.model.global_head.projection.embed_dims = DIMS
    cfg.model.backbone.init_cfg = None
    other = MODELS.build(cfg.model).eval()
    other.load_state_dict(model.student.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = other(images, mode="tensor")["visual_features"]
        assert torch.equal(model.encode_image(images), wanted)
    first, activation, second = model.student.global_head.projection.mlp
    assert isinstance(activation, torch.nn.GELU)
    assert (first.in_features, first.out_features) == (2048, 2048)
    assert (second.in_features, second.out_features) == (2048, DIMS)
