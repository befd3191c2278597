"""One function for every mask, held to a naive double loop in float64 on each of its paths."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from groundup.kernels import attention

module = importlib.import_module("groundup.kernels.attention")


def naive(
    q, k, v, q_pos, k_pos, window=None, segments=None, softcap=None, scale=None, sink_tokens=0, sinks=None, slopes=None,
    causal=True,
):  # fmt: skip
    """The definition, one query at a time, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    batch, q_seq, heads, d_head = q.shape
    groups = heads // k.shape[2]
    out = torch.zeros(batch, q_seq, heads, v.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for i in range(q_seq):
            p = q_pos[b, i]
            seen = [
                j
                for j in range(k.shape[1])
                if (0 <= k_pos[b, j] <= p if causal else min(k_pos[b, j], p) >= 0)
                and (window is None or abs(p - k_pos[b, j]) < window or offset(k_pos, segments, b, j) < sink_tokens)
                and (segments is None or segments[b, i] == segments[b, j])
            ]
            for h in range(heads):
                if seen:
                    scores = k[b, seen, h // groups] @ q[b, i, h] * (scale or 1 / math.sqrt(d_head))
                    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
                    if slopes is not None:
                        scores = scores - slopes[h].double() * (p - k_pos[b, seen]).abs()
                    parts = scores.exp()
                    total = parts.sum() + (0 if sinks is None else sinks[h].double().exp())
                    out[b, i, h] = parts / total @ v[b, seen, h // groups]
    return out


def offset(positions, segments, row, place):
    """Tokens between the start of this one's document and it."""
    if segments is None:
        return positions[row, place]
    start = min(j for j in range(place + 1) if (segments[row, j : place + 1] == segments[row, place]).all())
    return positions[row, place] - positions[row, start]


def random(q_seq=7, k_seq=None, batch=2, heads=4, kv_heads=2, d_head=8, dtype=torch.float32):
    k_seq = q_seq if k_seq is None else k_seq
    q = torch.randn(batch, q_seq, heads, d_head, dtype=dtype)
    k, v = torch.randn(2, batch, k_seq, kv_heads, d_head, dtype=dtype)
    return q, k, v


def counted(seq, batch=2):
    return torch.arange(seq).expand(batch, seq)


def test_by_hand():
    """Equal scores: token i averages the values up to and including its own."""
    q, k = torch.zeros(2, 1, 3, 1, 2)
    v = torch.tensor([3.0, 5.0, 10.0]).view(1, 3, 1, 1)
    out = attention(q, k, v, counted(3, 1), counted(3, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([3.0, 4.0, 6.0]))
    out = attention(q, k, v, counted(3, 1), counted(3, 1), causal=False, window=2)
    torch.testing.assert_close(out.flatten(), torch.tensor([4.0, 6.0, 7.5]))


@pytest.fixture(params=["matmul", "fused"])
def path(request, monkeypatch):
    """Both ways of computing it, whatever the shape."""
    monkeypatch.setattr(module, "_fused_wins", lambda q, k: request.param == "fused")


OPTIONS = {
    "plain": {},
    "window": {"window": 3},
    "window_of_one": {"window": 1},
    "softcap": {"softcap": 0.7},
    "scale": {"scale": 0.3},
    "everything": {"window": 4, "softcap": 2.0, "scale": 0.5, "segments": True},
    "segments": {"segments": True},
    "sink_tokens": {"window": 2, "sink_tokens": 2},
    "sink_tokens_of_each_document": {"window": 1, "sink_tokens": 1, "segments": True},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "slopes": {"slopes": torch.tensor([1.0, 0.5, 0.25, 0.0])},
    "all_that_is_new": {
        "window": 2, "sink_tokens": 1, "sinks": torch.ones(4), "slopes": torch.full((4,), 0.3), "softcap": 1.5,
    },
}  # fmt: skip


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("hint", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_sides"])
def test_against_the_double_loop(option, hint, heads, causal):
    q, k, v = random(heads=heads[0], kv_heads=heads[1])
    options = dict(OPTIONS[option])
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]]) if options.pop("segments", None) else None
    expected = naive(q, k, v, counted(7), counted(7), segments=segments, causal=causal, **options)
    out = attention(
        q,
        k,
        v,
        counted(7),
        counted(7),
        q_segments=segments,
        k_segments=segments,
        causal=causal,
        causal_from_zero=hint,
        **options,
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("seq", [1, 41, 129])
@pytest.mark.parametrize("causal", [True, False])
def test_awkward_lengths_against_torch(seq, causal):
    q, k, v = random(seq, kv_heads=4)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)
    for hint in (False, True):
        out = attention(q, k, v, counted(seq), counted(seq), causal=causal, causal_from_zero=hint)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("lengths", [(3, 8), (8, 3)])
@pytest.mark.parametrize("window", [None, 4])
def test_two_texts_of_different_lengths(lengths, window):
    """Queries of one text and keys of another, as in cross-attention; a window of 4 is less than the longer."""
    (q_seq, k_seq), positions = lengths, (counted(lengths[0]), counted(lengths[1]))
    q, k, v = random(q_seq, k_seq)
    expected = naive(q, k, v, *positions, window=window, causal=False)
    for hint in (False, True):
        out = attention(q, k, v, *positions, causal=False, window=window, causal_from_zero=hint and window is None)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_masked_where_all_is_seen(monkeypatch):
    """torch's kernel gets no mask, which it would have to read, and is not told to be causal."""
    seen = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(module, "_fused_wins", lambda q, k: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: seen.append(k) or fused(*a, **k))
    for causal in (True, False):
        attention(*random(5), counted(5), counted(5), causal=causal, causal_from_zero=True)
    assert [(k["attn_mask"], k["is_causal"]) for k in seen] == [(None, True), (None, False)]


@pytest.mark.parametrize("seq", [2 * module.LEAST_PART - 1, 2 * module.LEAST_PART, 3 * module.LEAST_PART + 1, 300])
@pytest.mark.parametrize("option", ["plain", "window", "softcap", "slopes", "sinks"])
def test_skipping_a_part_of_the_square_changes_neither_values_nor_gradients(seq, option):
    """Without the promise of positions from zero the whole square is multiplied."""
    q, k, v = random(seq, dtype=torch.float64)
    upstream = torch.randn_like(q)
    results = []
    for hint in (False, True):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attention(*leaves, counted(seq), counted(seq), causal_from_zero=hint, **OPTIONS[option])
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_own_backward_pass_of_the_scores_is_autograds():
    """Once and twice, for each sample by itself, and the keys' gradient lies as the keys do."""
    rows, k = (torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 6))
    scores = module._Scores.apply
    assert torch.autograd.gradcheck(scores, (rows, k)) and torch.autograd.gradgradcheck(scores, (rows, k))
    upstream = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    got = torch.autograd.grad(scores(rows, k), (rows, k), upstream)
    assert got[1].is_contiguous()
    expected = torch.autograd.grad(rows @ k.mT, (rows, k), upstream)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    each = torch.func.vmap(torch.func.grad(lambda r, k, up: (scores(r, k) * up).sum(), argnums=(0, 1)))
    torch.testing.assert_close(each(rows, k, upstream), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("causal", [True, False])
def test_scattered_positions_with_padding_and_gradients(causal):
    """Left padding, holes and unordered keys; padding queries give zeros and no NaN anywhere."""
    q, k, v = (x.requires_grad_() for x in random(4, 6))
    q_pos = torch.tensor([[-1, 3, 4, 5], [0, 9, 2, 2]])
    k_pos = torch.tensor([[-1, 5, 3, 0, 4, -1], [9, 8, -1, 1, 0, 2]])
    out = attention(q, k, v, q_pos, k_pos, causal=causal)
    torch.testing.assert_close(out.double(), naive(q, k, v, q_pos, k_pos, causal=causal), rtol=1e-4, atol=1e-5)
    assert out[0, 0].abs().max() == 0
    out.square().sum().backward()
    for x in (q, k, v):
        assert x.grad is not None and x.grad.isfinite().all()
    assert q.grad[0, 0].abs().max() == 0
    assert k.grad[0, [0, 5]].abs().max() == 0 and v.grad[1, 2].abs().max() == 0


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("option", ["plain", "window", "segments", "sinks", "slopes"])
def test_gradients_against_the_double_loop(option):
    options = dict(OPTIONS[option])
    segments = torch.tensor([[0, 0, 1, 1, 1]]) if options.pop("segments", None) else None
    q, k, v = random(5, batch=1)
    upstream = torch.randn(1, 5, 4, 8)
    results = []
    for function in (attention, naive):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        kind = {"segments": segments} if function is naive else {"q_segments": segments, "k_segments": segments}
        out = function(*leaves, counted(5, 1), counted(5, 1), **kind, **options)
        out.backward(upstream.to(out.dtype))
        results.append([x.grad for x in leaves])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seq", [5, module.LONG_CONTEXT + 1])
@pytest.mark.parametrize("hint", [False, True])
def test_bfloat16_on_both_sides_of_the_long_context_switch(seq, hint):
    q, k, v = random(seq, batch=1, dtype=torch.bfloat16)
    out = attention(q, k, v, counted(seq, 1), counted(seq, 1), causal_from_zero=hint)
    exact = attention(q.double(), k.double(), v.double(), counted(seq, 1), counted(seq, 1))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=3e-2, atol=3e-2)


def test_decode_is_the_last_row_of_the_whole():
    q, k, v = random(9)
    whole = attention(q, k, v, counted(9), counted(9), window=5)
    last = attention(q[:, -1:], k, v, counted(9)[:, -1:], counted(9), window=5)
    torch.testing.assert_close(last, whole[:, -1:])


@pytest.mark.usefixtures("path")
def test_only_positions_matter_not_where_a_key_is_stored():
    q, k, v = random(6)
    order = torch.randperm(6)
    moved = attention(q, k[:, order], v[:, order], counted(6), counted(6)[:, order])
    torch.testing.assert_close(moved, attention(q, k, v, counted(6), counted(6)), rtol=1e-4, atol=1e-6)


def test_strided_inputs_and_value_width():
    q, k, v = random(6)
    wide = torch.randn(2, 6, 2, 32)[..., ::2]
    out = attention(q, k.transpose(1, 2).contiguous().transpose(1, 2), wide, counted(6), counted(6))
    torch.testing.assert_close(out.double(), naive(q, k, wide, counted(6), counted(6)), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("hint", [False, True])
def test_empty_batch(hint):
    q, k, v = random(3, batch=0)
    assert attention(q, k, v, counted(3, 0), counted(3, 0), causal_from_zero=hint).shape == (0, 3, 4, 8)


@pytest.mark.parametrize(
    "options", [{}, {"causal_from_zero": True}, {"window": 2}, {"softcap": 5.0}, {"causal": False}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph(options, dtype):
    q, k, v = random(5, dtype=dtype)
    torch.compiler.reset()  # what earlier cases compiled counts against the limit on recompilations
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    expected = attention(q, k, v, counted(5), counted(5), **options)
    torch.testing.assert_close(compiled(q, k, v, counted(5), counted(5), **options), expected)


def test_sinks_and_slopes_have_gradients():
    """By finite differences."""
    q, k, v = random(3, batch=1, dtype=torch.float64)
    sinks, slopes = (torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def run(sinks, slopes):
        return attention(q, k, v, counted(3, 1), counted(3, 1), sinks=sinks, slopes=slopes)

    assert torch.autograd.gradcheck(run, (sinks, slopes))


def test_a_sink_of_minus_infinity_is_none():
    q, k, v = random(5)
    sinks = torch.full((4,), -torch.inf)
    expected = attention(q, k, v, counted(5), counted(5))
    torch.testing.assert_close(attention(q, k, v, counted(5), counted(5), sinks=sinks), expected)
