"""Latent attention: its two forms, its definition head by head, and what the cache keeps of it."""

import pytest
import torch

from groundup.kernels import apply_rope, rmsnorm
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    CountingCache,
    DenseCache,
    LatentAttention,
    LatentAttentionConfig,
    Layout,
    MLPConfig,
    NoCache,
    Rope,
)
from groundup.model.position import rotary_tables

from .variants import build, small, tokens

CONFIG = LatentAttentionConfig(3, kv_rank=10, d_nope=6, d_rope=4, d_value=5, q_rank=7, rope=Rope(100.0))


def layer(config=CONFIG, d_model=16):
    made = LatentAttention(config, d_model).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def layout(seq, config, first=0):
    positions = torch.arange(first, first + seq)[None]
    return Layout(positions.expand(2, -1), tables=rotary_tables(positions, config.rotary), causal_from_zero=first == 0)


@pytest.mark.parametrize("q_rank", [None, 7])
def test_by_its_definition_head_by_head(q_rank):
    config = LatentAttentionConfig(3, 10, 6, 4, 5, q_rank, Rope(100.0))
    m, x = layer(config), torch.randn(2, 4, 16, dtype=torch.float64)
    q_in = x if q_rank is None else rmsnorm(x @ m.wq_down.weight.T, m.q_norm.weight)
    wq = (m.wq if q_rank is None else m.wq_up).weight.view(3, 10, -1)
    latent = rmsnorm(x @ m.wkv_down.weight.T, m.kv_norm.weight)
    positions = torch.arange(4).expand(2, -1)
    k_rope = apply_rope((x @ m.wk_rope.weight.T)[:, :, None], positions, 100.0)[:, :, 0]
    heads = []
    for h, up in enumerate(m.wkv_up.weight.view(3, 11, 10)):
        q = q_in @ wq[h].T
        q_rope = apply_rope(q[..., None, 6:], positions, 100.0)[..., 0, :]
        k, v = latent @ up[:6].T, latent @ up[6:].T
        scores = (q[..., :6] @ k.mT + q_rope @ k_rope.mT) / 10**0.5
        mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(mask, -torch.inf).softmax(-1) @ v)
    expected = torch.cat(heads, -1) @ m.wo.weight.T
    torch.testing.assert_close(m(x, layout(4, config), NoCache()), expected)


@pytest.mark.parametrize("form", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.2}, {"window": 3}])
def test_both_forms_agree_in_outputs_and_gradients(form, options, monkeypatch):
    config = LatentAttentionConfig(3, 10, 6, 4, 5, 7, Rope(100.0), **options)
    m, x = layer(config), torch.randn(2, 7, 16, dtype=torch.float64)
    expected = m(x, layout(7, config), NoCache())
    gradients = torch.autograd.grad(expected.square().sum(), list(m.parameters()))
    monkeypatch.setattr(LatentAttention, "absorbs", lambda *_: form)
    found = m(x, layout(7, config), NoCache())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), list(m.parameters())), gradients)


def test_decoding_attends_to_latents_and_training_does_not():
    m = layer(LatentAttentionConfig(16, kv_rank=32, d_nope=16, d_rope=8, d_value=16))
    assert m.absorbs(1, 100) and m.absorbs(4, 1000)
    assert not m.absorbs(100, 100) and not m.absorbs(64, 100)


@pytest.mark.parametrize("form", [False, True], ids=["expanded", "absorbed"])
def test_steps_with_a_cache_in_either_form_equal_the_whole(form, monkeypatch):
    m, x = layer(), torch.randn(2, 6, 16, dtype=torch.float64)
    whole = m(x, layout(6, CONFIG), NoCache())
    monkeypatch.setattr(LatentAttention, "absorbs", lambda *_: form)
    cache = DenseCache()
    with torch.no_grad():
        pieces = [m(x[:, :4], layout(4, CONFIG), cache)]
        pieces += [m(x[:, i : i + 1], layout(1, CONFIG, i), cache) for i in (4, 5)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_the_cache_keeps_the_latent_and_one_key_however_many_heads():
    """DeepSeek-V2's table 1: (d_c + d_r) numbers per token and layer, against 2 n_kv d_h of grouped queries."""
    counted = {}
    for name, mixer in {
        "few": LatentAttentionConfig(2, kv_rank=12, d_nope=4, d_rope=2, d_value=4),
        "many": LatentAttentionConfig(8, kv_rank=12, d_nope=4, d_rope=2, d_value=4),
        "grouped": AttentionConfig(8, 2, 4),
    }.items():
        model = build(small(BlockConfig(mixer, MLPConfig(8))))
        caches = [CountingCache() for _ in model.blocks]
        model(tokens(), caches=caches)
        counted[name] = caches[0].bytes_per_token
    assert counted == {"few": 4 * 14, "many": 4 * 14, "grouped": 4 * 2 * 2 * 4}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kv_rank": 0}, "kv_rank=0"),
        ({"q_rank": 0}, "q_rank=0; expected at least 1, or None"),
        ({"d_rope": 3}, "d_rope=3 is odd"),
        ({"window": 0}, "window=0"),
        ({"scale": 0.0}, "scale=0.0"),
    ],
)
def test_numbers_that_make_no_sense(wrong, message):
    numbers = {"num_heads": 2, "kv_rank": 8, "d_nope": 4, "d_rope": 2, "d_value": 4}
    with pytest.raises(ValueError, match=message):
        LatentAttentionConfig(**(numbers | wrong))
