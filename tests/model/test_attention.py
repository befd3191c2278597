"""The layer around the kernel: projections, heads, norms, rotation and errors."""

import pytest
import torch
import torch.nn.functional as F

from groundup.kernels import apply_rope, rmsnorm
from groundup.model import Attention, AttentionConfig, DenseCache, Layout, NoCache, Rope
from groundup.model.attention import alibi_slopes
from groundup.model.position import rotary_tables


def run(layer, x, positions=None):
    positions = torch.arange(x.shape[1])[None] if positions is None else positions
    tables = rotary_tables(positions, layer.config.rotary)
    return layer(x, Layout(positions.expand(x.shape[:2]), tables=tables), NoCache())


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_against_torchs_attention(kv_heads, qk_norm):
    config = AttentionConfig(4, kv_heads, 8, rope=Rope(100.0), qk_norm=qk_norm, bias=True, out_bias=True)
    layer, x = Attention(config, 16), torch.randn(2, 6, 16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    def heads(name):
        linear = getattr(layer, f"w{name}")
        y = F.linear(x, linear.weight, linear.bias).view(2, 6, -1, 8)
        return rmsnorm(y, getattr(layer, f"{name}_norm").weight) if qk_norm and name != "v" else y

    positions = torch.arange(6).expand(2, 6)
    q, k = (apply_rope(heads(name), positions, 100.0).transpose(1, 2) for name in "qk")
    v = heads("v").transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = F.linear(mixed.transpose(1, 2).flatten(2), layer.wo.weight, layer.wo.bias)
    torch.testing.assert_close(run(layer, x), expected, rtol=1e-4, atol=1e-5)


def test_grouped_with_equal_heads_is_multi_head_and_with_one_is_multi_query():
    """The same weights written out per query head give the same result."""
    x = torch.randn(2, 5, 16)
    for kv_heads in (4, 2, 1):
        grouped, full = (Attention(AttentionConfig(4, n, 4), 16) for n in (kv_heads, 4))
        with torch.no_grad():
            for name in ("wq", "wo"):
                getattr(full, name).weight.copy_(getattr(grouped, name).weight)
            for name in ("wk", "wv"):
                rows = getattr(grouped, name).weight.view(kv_heads, 4, 16).repeat_interleave(4 // kv_heads, 0)
                getattr(full, name).weight.copy_(rows.flatten(0, 1))
        torch.testing.assert_close(run(grouped, x), run(full, x), rtol=1e-4, atol=1e-5)


def test_a_slice_of_heads_runs_the_same_code_and_slices_add_up():
    """Head counts come from the weights: cut by the `shard` table, two halves sum to the whole."""
    config = AttentionConfig(4, 2, 4, qk_norm=True)
    whole, x = Attention(config, 16), torch.randn(2, 5, 16)
    total = torch.zeros_like(x)
    for rank in range(2):
        half = Attention(config, 16)
        half.load_state_dict(whole.state_dict())
        for name, how in whole.shard.items():
            if how in ("col", "row"):
                linear = getattr(half, name)
                linear.weight = torch.nn.Parameter(linear.weight.detach().chunk(2, int(how == "row"))[rank])
        total += run(half, x)
    torch.testing.assert_close(total, run(whole, x), rtol=1e-4, atol=1e-5)


def test_rotary_attention_is_blind_to_a_common_shift_and_not_to_order():
    layer, x = Attention(AttentionConfig(2, 2, 8), 16), torch.randn(1, 5, 16)
    positions = torch.arange(5)[None]
    torch.testing.assert_close(run(layer, x, positions), run(layer, x, positions + 1000), rtol=1e-3, atol=1e-4)
    stretched = run(layer, x, 3 * positions)
    assert not torch.allclose(run(layer, x, positions), stretched, atol=1e-3)


def test_without_positions_the_last_token_sees_a_set():
    layer, x = Attention(AttentionConfig(2, 2, 8, rope=None), 16), torch.randn(1, 5, 16)
    shuffled = x[:, [2, 0, 3, 1, 4]]
    torch.testing.assert_close(run(layer, shuffled)[:, -1], run(layer, x)[:, -1], rtol=1e-4, atol=1e-5)


def test_a_window_of_one_reads_only_its_own_value():
    layer, x = Attention(AttentionConfig(2, 2, 8, window=1), 16), torch.randn(1, 5, 16)
    torch.testing.assert_close(run(layer, x), layer.wo(layer.wv(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 4, 8), r"num_kv_heads=4 does not divide num_heads=6, .* allowed are 1, 2, 3, 6 \(nearest: 3\)"),
        ((4, 8, 8), r"num_kv_heads=8 does not divide num_heads=4"),
        ((4, 2, 7), r"d_head=7 is odd, .* use 6 or 8, or rope=None"),
        ((0, 1, 8), r"num_heads=0; expected at least 1"),
        ((4, 0, 8), r"num_kv_heads=0; expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_said_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(*arguments)


@pytest.mark.parametrize("wrong", [{"window": 0}, {"softcap": 0.0}, {"softcap": -1.0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AttentionConfig(4, 2, 8, **wrong)


def test_an_encoder_has_neither_sink_tokens_nor_a_cache():
    with pytest.raises(ValueError, match="sink_tokens=1 with causal=False; .* give sink_tokens=0"):
        AttentionConfig(2, 2, 8, window=4, sink_tokens=1, causal=False)
    layer, layout = Attention(AttentionConfig(2, 2, 8, rope=None, causal=False), 16), Layout(torch.arange(3)[None])
    with pytest.raises(ValueError, match="causal=False was given a cache, .* without caches, or build"):
        layer(torch.randn(1, 3, 16), layout, DenseCache())


def test_without_order_or_direction_an_encoder_sees_a_set():
    layer, x = Attention(AttentionConfig(2, 2, 8, rope=None, causal=False), 16), torch.randn(1, 5, 16)
    order = [2, 0, 3, 1, 4]
    torch.testing.assert_close(run(layer, x[:, order]), run(layer, x)[:, order], rtol=1e-4, atol=1e-5)


def test_an_odd_head_is_fine_without_rotation():
    assert AttentionConfig(4, 2, 7, rope=None).d_head == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sink_tokens": 2}, "sink_tokens=2, window=None; expected 0, or more beside a window"),
        ({"sink_tokens": -1, "window": 4}, "sink_tokens=-1"),
        ({"scale": 0.0}, "scale=0.0; expected a positive number"),
    ],
)
def test_options_that_need_each_other(wrong, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(4, 2, 8, **wrong)


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12])
def test_slopes_of_alibi_against_transformers(heads):
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    expected = bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), expected)


def test_alibi_prefers_the_near_of_equal_keys():
    layer, x = Attention(AttentionConfig(1, 1, 4, rope=None, alibi=True), 4), torch.randn(1, 3, 4)
    with torch.no_grad():
        layer.wq.weight.zero_()  # all scores equal, but for the slope of 2^-8
    values = layer.wv(x)[0]
    weights = torch.tensor([-2.0, -1.0, 0.0]).mul(2**-8).softmax(0)
    torch.testing.assert_close(run(layer, x)[0, 2], layer.wo(weights @ values))


def test_a_norm_over_all_heads_is_one_norm():
    layer, x = Attention(AttentionConfig(2, 1, 4, rope=None, qk_norm="whole"), 8), torch.randn(1, 3, 8)
    assert layer.q_norm.weight.shape == (8,) and layer.k_norm.weight.shape == (4,)
    q = rmsnorm(layer.wq(x), layer.q_norm.weight).view(1, 3, 2, 4).transpose(1, 2)
    k = rmsnorm(layer.wk(x), layer.k_norm.weight)[:, None]
    mixed = F.scaled_dot_product_attention(q, k, layer.wv(x)[:, None], is_causal=True, enable_gqa=True)
    torch.testing.assert_close(run(layer, x), layer.wo(mixed.transpose(1, 2).flatten(2)))


def test_sinks_take_weight_and_start_as_one_key_of_score_zero():
    layer, x = Attention(AttentionConfig(2, 2, 4, rope=None, sinks=True), 8), torch.randn(1, 1, 8)
    score = (layer.wq(x).view(2, 4) * layer.wk(x).view(2, 4)).sum(1) / 2
    weight = score.exp() / (1 + score.exp())
    expected = layer.wo((weight[:, None] * layer.wv(x).view(2, 4)).view(1, 1, 8))
    torch.testing.assert_close(run(layer, x), expected)


@pytest.mark.parametrize("wrong", ["Whole", "head", 1, None])
def test_an_unknown_qk_norm_is_refused(wrong):
    config = AttentionConfig(4, 2, 8)
    object.__setattr__(config, "qk_norm", wrong)  # the tests' type checks would refuse it first
    with pytest.raises(ValueError, match="qk_norm=.*expected True, False or 'whole'"):
        config.__post_init__()


def test_alibi_and_a_rotation_exclude_each_other():
    with pytest.raises(ValueError, match="give rope=None"):
        AttentionConfig(4, 2, 8, alibi=True)
