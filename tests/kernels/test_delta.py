"""Both forms of the gated delta rule against a loop, transformers' functions, each other, and at the edges."""

import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from groundup.kernels import gated_delta, gated_delta_chunked, gated_delta_recurrent

from .test_scan import D_KEY, D_VALUE, LENGTHS, inputs, starts, with_gradients, worst

FORMS = {"recurrent": gated_delta_recurrent, "chunked": gated_delta_chunked}

forms = pytest.mark.parametrize("form", FORMS)


def delta_inputs(seq, **options):
    """As for the linear recurrence, with unit keys, one decay per head, and beta before the state."""
    q, k, v, log_decay, state = inputs(seq, **options)
    beta = torch.rand(v.shape[:3], dtype=v.dtype)
    return q, k / k.norm(dim=-1, keepdim=True), v, log_decay[..., 0], beta, state


def naive(q, k, v, log_decay, beta, state, resets=None):
    """S_t = S_{t-1} a (I - b k k^T) + b v k^T with the paper's states, (d_value, d_key)."""
    batch, seq, heads, _ = v.shape
    out, state, eye = torch.zeros_like(v), state.mT.clone(), torch.eye(k.shape[-1], dtype=k.dtype)
    for b in range(batch):
        for h in range(heads):
            group = h * q.shape[2] // heads
            for t in range(seq):
                if resets is not None and resets[b, t]:
                    state[b, h] = 0
                key, strength = k[b, t, group], beta[b, t, h]
                kept = log_decay[b, t, h].exp() * (eye - strength * torch.outer(key, key))
                state[b, h] = state[b, h] @ kept + strength * torch.outer(v[b, t, h], key)
                out[b, t, h] = state[b, h] @ q[b, t, group]
    return out, state.mT


@forms
def test_by_hand(form):
    """One key, seen three times: 8 is stored; 4 replaces it; half of the way from 4 to 10 is 7."""
    k = torch.ones(1, 3, 1, 1)
    v, beta = torch.tensor([8.0, 4.0, 10.0]).view_as(k), torch.tensor([1.0, 1.0, 0.5]).view(1, 3, 1)
    out, last = FORMS[form](k, k, v, torch.zeros(1, 3, 1), beta)
    torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 4.0, 7.0]))
    assert last.item() == pytest.approx(7.0)


@forms
@pytest.mark.parametrize("documents", [False, True])
def test_against_the_loop(form, documents):
    tensors, resets = delta_inputs(41), starts(41) if documents else None
    for found, expected in zip(FORMS[form](*tensors, resets), naive(*tensors, resets), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("theirs", [qwen.torch_recurrent_gated_delta_rule, qwen.torch_chunk_gated_delta_rule])
@pytest.mark.parametrize("seq", [1, 41, 129])
def test_against_transformers(theirs, seq):
    """They scale queries themselves, and compute in float32."""
    q, k, v, log_decay, beta, state = delta_inputs(seq, dtype=torch.float32)
    out, last = theirs(q, k, v, log_decay, beta, initial_state=state, output_final_state=True)
    for form in FORMS.values():
        assert worst(form(q * D_KEY**-0.5, k, v, log_decay, beta, state), (out, last)) < 1e-5


@pytest.mark.parametrize("seq", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_both_forms_agree_forward_and_backward(seq, dtype, tolerance):
    tensors = delta_inputs(seq, dtype=dtype)
    for resets in (None, starts(seq)):
        found, expected = (with_gradients(form, tensors, resets) for form in FORMS.values())
        assert worst(found, expected) < tolerance


@pytest.mark.parametrize("chunk_size", [1, 2, 16, 256])
def test_the_size_of_chunks_changes_nothing(chunk_size):
    """The last is one chunk: the parallel form."""
    tensors, resets = delta_inputs(141), starts(141)
    found = with_gradients(lambda *x: gated_delta_chunked(*x, chunk_size), tensors, resets)
    assert worst(found, with_gradients(gated_delta_recurrent, tensors, resets)) < 1e-10


@pytest.mark.parametrize("documents", [False, True])
def test_strong_decays_neither_overflow_nor_lose_weak_ones_beside_them(documents):
    tensors = list(delta_inputs(129, dtype=torch.float32))
    strong = torch.rand(tensors[3].shape) < 0.5
    strong[:, 30:60] = True
    tensors[3] = torch.where(strong, -50.0, 1e-3 * tensors[3])
    resets = starts(129) if documents else None
    expected = with_gradients(gated_delta_recurrent, [x.double() for x in tensors], resets)
    for form in FORMS.values():
        found = with_gradients(form, tensors, resets)
        assert all(x.isfinite().all() for x in found)
        assert worst([x.double() for x in found], expected) < 1e-5


@forms
def test_equal_keys_at_full_strength_do_not_blow_up(form):
    """The system of a chunk is then as far from the identity as it can be: every value replaces the one before."""
    q, k, v, log_decay, beta, state = delta_inputs(129, dtype=torch.float32)
    k = k[:, :1].expand_as(k)
    out, last = FORMS[form](k, k, v, torch.zeros_like(log_decay), torch.ones_like(beta), state)
    torch.testing.assert_close(out, v, rtol=1e-4, atol=1e-4)
    assert last.abs().max() < 3 * state.abs().max()


@forms
def test_orthogonal_keys_are_recalled_exactly(form):
    """As many key-value pairs as the state has rows, and none disturbs another."""
    k = torch.eye(D_KEY, dtype=torch.float64)[None, :, None].expand(2, -1, 2, -1)
    v = torch.randn(2, D_KEY, 4, D_VALUE, dtype=torch.float64)
    _, state = FORMS[form](k, k, v, torch.zeros(2, D_KEY, 4), torch.ones(2, D_KEY, 4))
    torch.testing.assert_close(state, v.transpose(1, 2))


@forms
def test_pieces_padding_and_an_empty_batch(form):
    *rows, state = delta_inputs(41)
    rows[3], rows[4] = rows[3].clone(), rows[4].clone()
    rows[3][:, 30:], rows[4][:, 30:] = 0.0, 0.0  # padding: no decay, no correction
    expected, last = FORMS[form](*rows, state)
    first, between = FORMS[form](*(x[:, :11] for x in rows), state)
    second, found = FORMS[form](*(x[:, 11:30] for x in rows), between)
    torch.testing.assert_close(torch.cat([first, second], 1), expected[:, :30])
    torch.testing.assert_close(found, last)
    assert FORMS[form](*(x[:0] for x in rows), state[:0])[0].shape == (0, 41, 4, D_VALUE)


def test_one_token_takes_the_recurrence_and_more_take_chunks():
    for seq, form in ((1, gated_delta_recurrent), (2, gated_delta_chunked)):
        tensors = delta_inputs(seq)
        for found, expected in zip(gated_delta(*tensors), form(*tensors), strict=True):
            assert torch.equal(found, expected)


def test_torch_compile_traces_it_as_one_graph():
    torch._dynamo.reset()  # what other tests compiled counts towards its limit
    tensors = delta_inputs(20)
    compiled = torch.compile(gated_delta_chunked.reference, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors)[0], gated_delta_chunked(*tensors)[0])
