"""The forms of the gated linear recurrence against a loop over single numbers, against each other, and at the edges."""

import pytest
import torch
import torch.nn.functional as F

from groundup.kernels import (
    gated_linear,
    gated_linear_chunked,
    gated_linear_parallel,
    gated_linear_recurrent,
)

FORMS = {"recurrent": gated_linear_recurrent, "chunked": gated_linear_chunked, "parallel": gated_linear_parallel}
LENGTHS = [1, 7, 41, 64, 129]
D_KEY, D_VALUE = 8, 6

forms = pytest.mark.parametrize("form", FORMS)
decays = pytest.mark.parametrize("by_channel", [False, True], ids=["by_head", "by_channel"])


def inputs(seq, *, by_channel=False, dtype=torch.float64, batch=2, heads=4, groups=2, most=0.3):
    """q, k, v, log_decay and a state; decays of up to exp(-most) per token."""
    q, k = torch.randn(2, batch, seq, groups, D_KEY, dtype=dtype)
    v = torch.randn(batch, seq, heads, D_VALUE, dtype=dtype)
    log_decay = -most * torch.rand(batch, seq, heads, D_KEY if by_channel else 1, dtype=dtype)
    state = torch.randn(batch, heads, D_KEY, D_VALUE, dtype=dtype)
    return q, k / D_KEY**0.5, v, log_decay, state


def starts(seq, batch=2):
    """Documents of about eight tokens, some of one; other ones in each row."""
    resets = torch.rand(batch, seq) < 0.12
    resets[0, 5:7] = True
    return resets


def with_gradients(form, tensors, resets=None):
    """Outputs, last state, and the gradient of every input."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    out, last = form(*leaves, resets)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, last, *torch.autograd.grad((out * upstream).sum() + last.square().sum(), leaves)]


def worst(found, expected):
    """The largest relative error, each tensor on its own scale."""
    return max(((f - e).abs().max() / e.abs().max()).item() for f, e in zip(found, expected, strict=True))


def naive(q, k, v, log_decay, state, resets=None):
    """The definition with plain indices."""
    batch, seq, heads, _ = v.shape
    out, state = torch.zeros_like(v), state.clone()
    for b in range(batch):
        for h in range(heads):
            group = h * q.shape[2] // heads
            for t in range(seq):
                if resets is not None and resets[b, t]:
                    state[b, h] = 0
                state[b, h] = log_decay[b, t, h].exp()[:, None] * state[b, h] + torch.outer(k[b, t, group], v[b, t, h])
                out[b, t, h] = q[b, t, group] @ state[b, h]
    return out, state


@forms
def test_by_hand(form):
    """Halved at each token: 8; 8/2 + 4; 8/4 + 4/2 + 2. The query of the last is 10."""
    k = torch.ones(1, 3, 1, 1)
    q, v = torch.tensor([1.0, 1.0, 10.0]).view_as(k), torch.tensor([8.0, 4.0, 2.0]).view_as(k)
    out, last = FORMS[form](q, k, v, torch.full_like(k, 0.5).log())
    torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 8.0, 60.0]))
    assert last.item() == pytest.approx(6.0)


@forms
@decays
@pytest.mark.parametrize("documents", [False, True])
def test_against_the_loop(form, by_channel, documents):
    tensors, resets = inputs(41, by_channel=by_channel), starts(41) if documents else None
    for found, expected in zip(FORMS[form](*tensors, resets), naive(*tensors, resets), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@decays
@pytest.mark.parametrize("seq", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_all_forms_agree_forward_and_backward(by_channel, seq, dtype, tolerance):
    tensors = inputs(seq, by_channel=by_channel, dtype=dtype)
    for resets in (None, starts(seq)):
        expected = with_gradients(gated_linear_recurrent, tensors, resets)
        for form in (gated_linear_chunked, gated_linear_parallel):
            assert worst(with_gradients(form, tensors, resets), expected) < tolerance


@decays
@pytest.mark.parametrize("chunk_size", [1, 2, 16])
def test_the_size_of_chunks_changes_nothing(by_channel, chunk_size):
    tensors, resets = inputs(41, by_channel=by_channel), starts(41)
    found = with_gradients(lambda *x: gated_linear_chunked(*x, chunk_size), tensors, resets)
    assert worst(found, with_gradients(gated_linear_recurrent, tensors, resets)) < 1e-10


@decays
@pytest.mark.parametrize("documents", [False, True])
def test_strong_decays_neither_overflow_nor_lose_weak_ones_beside_them(by_channel, documents):
    """A decay of exp(-50) per token among ones near 1. Running sums reach -1500 in a chunk: the exponential of such a
    difference would overflow on one side of the diagonal, and the difference lose the small decays on the other."""
    tensors = list(inputs(129, by_channel=by_channel, dtype=torch.float32))
    strong = torch.rand(tensors[3].shape) < 0.5
    strong[:, 30:60] = True
    tensors[3] = torch.where(strong, -50.0, 1e-3 * tensors[3])
    resets = starts(129) if documents else None
    expected = with_gradients(gated_linear_recurrent, [x.double() for x in tensors], resets)
    for form in FORMS.values():
        found = with_gradients(form, tensors, resets)
        assert all(x.isfinite().all() for x in found)
        assert worst([x.double() for x in found], expected) < 2e-6


@forms
@decays
def test_a_decay_to_zero_is_a_reset(form, by_channel):
    """log 0 is minus infinity: it must not meet another infinity."""
    tensors = list(inputs(41, by_channel=by_channel))
    resets = starts(41)
    expected = with_gradients(FORMS[form], tensors, resets)
    tensors[3] = tensors[3].masked_fill(resets[:, :, None, None], float("-inf"))
    found = with_gradients(FORMS[form], tensors)
    assert worst(found[:2], expected[:2]) < 1e-12
    assert all(gradient.isfinite().all() for gradient in found)


@forms
@decays
def test_documents_in_a_row_give_what_each_gives_alone(form, by_channel):
    tensors = inputs(40, by_channel=by_channel)
    resets = torch.zeros(2, 40, dtype=torch.bool)
    resets[:, [13, 14]] = True
    out, last = FORMS[form](*tensors, resets)
    *rows, state = tensors
    alone = [
        FORMS[form](*(x[:, a:b] for x in rows), state if a == 0 else None) for a, b in ((0, 13), (13, 14), (14, 40))
    ]
    torch.testing.assert_close(out, torch.cat([o for o, _ in alone], 1))
    torch.testing.assert_close(last, alone[-1][1])


@forms
@decays
def test_pieces_with_the_state_between_them_are_the_whole(form, by_channel):
    *rows, state = inputs(41, by_channel=by_channel)
    expected, last = FORMS[form](*rows, state)
    outs = []
    for piece in zip(*(x.split([20, 1, 20], 1) for x in rows), strict=True):
        out, state = FORMS[form](*piece, state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), expected)
    torch.testing.assert_close(state, last)


@forms
@decays
def test_padding_leaves_the_state_untouched(form, by_channel):
    """Zeros for k and for the decay's logarithm: whatever v and q are there."""
    q, k, v, log_decay, state = inputs(41, by_channel=by_channel)
    k[:, 30:], log_decay[:, 30:] = 0.0, 0.0
    _, last = FORMS[form](q, k, v, log_decay, state)
    _, expected = FORMS[form](*(x[:, :30] for x in (q, k, v, log_decay)), state)
    torch.testing.assert_close(last, expected)
    _, untouched = FORMS[form](*(x[:, 30:] for x in (q, k, v, log_decay)), state)
    assert torch.equal(untouched, state)


@forms
def test_without_decay_and_normalised_it_is_attention_without_its_softmax(form):
    """Against the matrix product of linear attention, masked."""
    q, k, v, log_decay, _ = inputs(41, groups=4)
    out, _ = FORMS[form](q, k, v, torch.zeros_like(log_decay))
    expected = torch.einsum("bihd,bjhd,bjhe,ij->bihe", q, k, v, torch.ones(41, 41, dtype=q.dtype).tril())
    torch.testing.assert_close(out, expected)


@forms
@decays
def test_strided_inputs_an_empty_batch_and_half_precision(form, by_channel):
    tensors = inputs(7, by_channel=by_channel, dtype=torch.float32)
    expected, state = FORMS[form](*tensors)
    strided = [F.pad(x, (1, 1))[..., 1:-1] for x in tensors]
    torch.testing.assert_close(FORMS[form](*strided)[0], expected)
    empty, _ = FORMS[form](*(x[:0] for x in tensors))
    assert empty.shape == (0, 7, 4, D_VALUE)
    half = [x.bfloat16() for x in tensors[:3]]
    out, last = FORMS[form](*half, *tensors[3:])
    assert out.dtype == torch.bfloat16 and last.dtype == torch.float32
    exact, _ = FORMS[form](*(x.float() for x in half), *tensors[3:])
    torch.testing.assert_close(out, exact.bfloat16())
    assert state.dtype == torch.float32


@decays
def test_one_token_takes_the_recurrence_and_more_take_chunks(by_channel):
    for seq, form in ((1, gated_linear_recurrent), (2, gated_linear_chunked)):
        tensors = inputs(seq, by_channel=by_channel)
        for found, expected in zip(gated_linear(*tensors), form(*tensors), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("form", [gated_linear_chunked, gated_linear_recurrent])
def test_torch_compile_traces_it_as_one_graph(form):
    torch._dynamo.reset()  # what other tests compiled counts towards its limit
    tensors = inputs(20, by_channel=True)
    compiled = torch.compile(form.reference, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors)[0], form(*tensors)[0])
