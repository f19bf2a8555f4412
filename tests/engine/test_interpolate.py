"""Weights between those before and after a fine-tuning."""

import pytest
import torch

from kdeov_mm.engine.interpolate import interpolate


@pytest.mark.parametrize("part", [0.0, 0.25, 1.0])
def test_it_lies_on_the_line_between_both(part: float) -> None:
    torch.manual_seed(0)
    before, after = (
        dict(w=torch.randn(3), half=torch.randn(2).half(), steps=torch.tensor(n))
        for n in (5, 7)
    )
    after["distill.w"] = torch.ones(1)
    mixed = interpolate(before, after, part)
    expected = before["w"] + part * (after["w"] - before["w"])
    torch.testing.assert_close(mixed["w"], expected)
    assert mixed["half"].dtype == torch.float16
    # what cannot be between them is of the fine-tuning
    assert mixed["steps"] == 7 and mixed["distill.w"] == 1
    if part in (0, 1):
        assert torch.equal(mixed["w"], (before, after)[int(part)]["w"])


@pytest.mark.parametrize("after", [{}, dict(w=torch.zeros(4))])
def test_two_models_have_nothing_between_them(after: dict) -> None:
    with pytest.raises(ValueError, match="one model, before and after"):
        interpolate(dict(w=torch.zeros(3)), after)
    with pytest.raises(ValueError, match="part"):
        interpolate({}, {}, 1.5)
