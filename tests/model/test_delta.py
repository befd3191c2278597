"""Gated DeltaNet held to the layer of Qwen3-Next in `transformers`."""

import pytest
import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from groundup.model import GatedDelta, GatedDeltaConfig, Layout, NoCache

D_MODEL = 16


def pair(key_heads):
    """A layer of each kind with the same weights: theirs fuses projections, interleaved by key head."""
    config = Qwen3NextConfig(
        hidden_size=D_MODEL, linear_num_value_heads=4, linear_num_key_heads=key_heads, linear_key_head_dim=5,
        linear_value_head_dim=6, linear_conv_kernel_dim=4, num_hidden_layers=1, rms_norm_eps=1e-5,
        layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = Qwen3NextGatedDeltaNet(config, 0)
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.2 * torch.randn_like(p)
    ours = GatedDelta(GatedDeltaConfig(4, 5, 6, num_key_heads=key_heads), D_MODEL, 1e-5)
    shared = 4 // key_heads
    q, k, v, z = (
        part.flatten(0, 1)
        for part in theirs.in_proj_qkvz.weight.unflatten(0, (key_heads, -1)).split([5, 5, 6 * shared, 6 * shared], 1)
    )
    b, a = (part.flatten(0, 1) for part in theirs.in_proj_ba.weight.unflatten(0, (key_heads, -1)).split(shared, 1))
    weights = {f"w{name}.weight": value for name, value in zip("qkvzab", (q, k, v, z, a, b), strict=True)}
    weights |= {"wo.weight": theirs.out_proj.weight, "conv.weight": theirs.conv1d.weight}
    weights |= {"norm.weight": theirs.norm.weight, "A_log": theirs.A_log, "dt_bias": theirs.dt_bias}
    ours.load_state_dict({name: value.detach() for name, value in weights.items()}, strict=True)
    return ours, theirs


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("seq", [1, 9, 70])
def test_against_qwen3_next(key_heads, seq):
    ours, theirs = pair(key_heads)
    x = torch.randn(2, seq, D_MODEL, requires_grad=True)
    layout = Layout(torch.arange(seq).expand(2, -1), causal_from_zero=True)
    found, expected = ours(x, layout, NoCache()), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(found)
    for name in (None, "A_log", "dt_bias", "norm.weight"):
        grads = [
            torch.autograd.grad(y, x if name is None else m.get_parameter(name), upstream, retain_graph=True)[0]
            for y, m in ((found, ours), (expected, theirs))
        ]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_value": 0}, "gated delta: d_value=0; expected at least 1"),
        ({"num_key_heads": 0}, "gated delta: num_key_heads=0; expected at least 1"),
        ({"num_key_heads": 3}, "num_key_heads=3 does not divide num_heads=4.*nearest: 2"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        GatedDeltaConfig(**({"num_heads": 4, "d_key": 5, "d_value": 6} | fields))
