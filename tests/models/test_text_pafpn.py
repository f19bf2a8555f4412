"""YOLO-World's attention of maps to words, against a slow reference."""

import itertools
import math

import pytest
import torch

from kdeov_mm.models import text_pafpn
from kdeov_mm.models.text_pafpn import MaxSigmoidAttention


@pytest.mark.parametrize("part", [1, 2**25])
def test_each_head_is_gated_by_its_own_most_alike_word(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_pafpn, "PART", part)
    torch.manual_seed(0)
    layer = MaxSigmoidAttention(64, 8, norm_cfg=dict(type="BN")).eval()
    layer.bias.data.normal_()
    layer.requires_grad_(False)
    feats, text = torch.randn(2, 64, 3, 5), torch.randn(2, 4, 8)
    out, hidden = layer(feats, text), layer.project_conv(feats)
    guide, size = layer.guide_fc(text), 64 // layer.heads
    assert layer.heads == 2
    for i, head, y, x in itertools.product(range(2), range(2), range(3), range(5)):
        own = slice(head * size, (head + 1) * size)
        alike = max((feats[i, own, y, x] @ word[own]).item() for word in guide[i])
        gate = alike / math.sqrt(size) + layer.bias[head].item()
        expected = hidden[i, own, y, x] / (1 + math.exp(-gate))
        torch.testing.assert_close(out[i, own, y, x], expected)
