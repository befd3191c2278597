"""Gated linear attention by its formulas, and the relatives that it contains."""

import pytest
import torch
import torch.nn.functional as F

from groundup.model import GatedLinear, GatedLinearConfig, Layout, NoCache

D_MODEL, SEQ = 16, 9


def run(layer, x):
    return layer(x, Layout(torch.arange(x.shape[1]).expand(x.shape[:2]), causal_from_zero=True), NoCache())


def layer_of(**options):
    layer = GatedLinear(GatedLinearConfig(2, 4, 6, **options), D_MODEL).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.2 * torch.randn_like(p)
    return layer


def by_formula(layer, x, log_decay):
    """q, k, v and decays to outputs before the norm: a loop over tokens."""
    q, k, v = (w(x).unflatten(-1, (2, -1)) for w in (layer.wq, layer.wk, layer.wv))
    state, outs = torch.zeros(2, 2, 4, 6, dtype=x.dtype), []
    for t in range(x.shape[1]):
        state = log_decay[:, t].exp()[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append((q[:, t, :, :, None] * state).sum(-2) / 2)
    out = torch.stack(outs, 1)
    normed = out * (out.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * layer.norm.weight
    return layer.wo(normed.flatten(2) * F.silu(layer.wz(x)))


def test_a_decay_for_each_channel_through_few():
    layer, x = layer_of(rank=3), torch.randn(2, SEQ, D_MODEL).double()
    assert layer.decay_up is not None
    logits = layer.decay_up(x @ layer.decay_down.weight.T).unflatten(-1, (2, 4))
    torch.testing.assert_close(run(layer, x), by_formula(layer, x, logits.sigmoid().log() / 16))


def test_a_decay_for_each_head():
    layer, x = layer_of(decay="head"), torch.randn(2, SEQ, D_MODEL).double()
    assert layer.decay_up is not None
    logits = layer.decay_up(x)
    torch.testing.assert_close(run(layer, x), by_formula(layer, x, logits.sigmoid().log()[..., None] / 16))


def test_retention_keeps_31_of_32_in_the_first_head_and_63_of_64_in_the_next():
    layer, x = layer_of(decay="fixed"), torch.randn(2, SEQ, D_MODEL).double()
    kept = torch.tensor([31 / 32, 63 / 64], dtype=torch.float64)
    log_decay = kept.log()[:, None].expand(2, SEQ, 2, 1)
    torch.testing.assert_close(run(layer, x), by_formula(layer, x, log_decay))


def test_linear_attention_is_attention_with_a_product_of_positive_features():
    """The quadratic form: weights phi(q) . phi(k), normalised over the tokens seen."""
    layer = layer_of(decay="none", features="elu", output_gate=False)
    x = torch.randn(2, SEQ, D_MODEL).double()
    q, k, v = (w(x).unflatten(-1, (2, -1)).transpose(1, 2) for w in (layer.wq, layer.wk, layer.wv))
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    mixed = (weights / weights.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(run(layer, x), layer.wo(mixed.transpose(1, 2).flatten(2)))


def test_config_errors():
    with pytest.raises(ValueError, match="gated linear: d_key=0; expected at least 1"):
        GatedLinearConfig(2, 0, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [({"decay": "chanel"}, "decay 'chanel' is unknown.*'channel'"), ({"features": "elu1"}, "features 'elu1'.*'elu'")],
)
def test_an_unknown_word_names_the_nearest(fields, message):
    with pytest.raises(ValueError, match=message):
        GatedLinearConfig(2, 4, 4, **fields)
