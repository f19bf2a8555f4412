"""YOLO-World's attention of maps to words, against a slow reference."""

import itertools
import math

import pytest
import torch
from mmyolo.models.layers import CSPLayerWithTwoConv

from kdeov_mm.models import text_pafpn
from kdeov_mm.models.text_pafpn import MaxSigmoidAttention, TextCSPLayer


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


def test_a_block_takes_what_the_one_before_it_gave() -> None:
    cfg = dict(norm_cfg=dict(type="BN"), act_cfg=dict(type="SiLU"))
    plain = CSPLayerWithTwoConv(16, 128, num_blocks=2, **cfg)
    layer = TextCSPLayer(plain, 8, **cfg).eval()
    feats, text = torch.randn(1, 16, 4, 4), torch.randn(3, 8)
    with torch.no_grad():
        one, two = layer.main_conv(feats).chunk(2, 1)
        three = layer.blocks[0](two)
        four = layer.blocks[1](three)
        parts = torch.cat([one, two, three, four, layer.attn_block(four, text)], 1)
        torch.testing.assert_close(layer(feats, text), layer.final_conv(parts))
