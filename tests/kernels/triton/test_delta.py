"""The gated delta rule in Triton against its reference in float64: interpreted here, compiled on a GPU."""

import pytest
import torch

from groundup.kernels import backend, gated_delta_chunked, gated_delta_recurrent
from tests.kernels.test_delta import delta_inputs
from tests.kernels.test_scan import starts
from tests.kernels.triton.test_scan import D_KEY, D_VALUE, TOLERANCE, ahead, check, with_gradients

pytest.importorskip("triton")


def small(seq):
    return delta_inputs(seq, dtype=torch.float32, batch=1, heads=2, groups=1)


# Of one token, the one gradient of its decay is a sum that may cancel: only float32 has digits to spare for that.
CASES = [(torch.float32, 1, False), *((dtype, *case) for dtype in TOLERANCE for case in [(7, True), (41, False)])]


@pytest.mark.parametrize(("dtype", "seq", "documents"), CASES)
def test_forward_and_backward(device, dtype, seq, documents):
    tensors, resets = small(seq), starts(seq, 1) if documents else None
    check(gated_delta_chunked, tensors, resets, TOLERANCE[dtype], dtype, device)


@pytest.mark.slow
def test_documents_over_more_than_two_chunks(device):
    tensors, resets = small(129), starts(129, 1)
    resets[0, 20:90] = False  # chunks that the state passes through
    check(gated_delta_chunked, tensors, resets, 1e-5, torch.float32, device)


def test_equal_keys_which_a_product_of_powers_would_lose(device):
    """Each token replaces what the same key stored before: the output is the newest value, up to the rounding of 64
    differences that are added up. The powers of this system have entries of 10^18, and cancel."""
    k, v = torch.zeros(1, 64, 1, D_KEY), torch.randn(1, 64, 1, D_VALUE)
    k[..., 0] = 1.0
    with backend("triton"):
        out, last = gated_delta_chunked(k, k, v, torch.zeros(1, 64, 1), torch.ones(1, 64, 1))
    torch.testing.assert_close(out, v, rtol=0, atol=1e-5)
    torch.testing.assert_close(last[0, 0, 0], v[0, -1, 0], rtol=0, atol=1e-5)


def test_one_token_after_the_other_with_the_state_between_them(device):
    *rows, state = small(3)
    expected, last = gated_delta_recurrent.reference(*rows, state)
    with backend("triton"):
        for t in range(3):
            out, state = gated_delta_recurrent(*(x[:, t : t + 1] for x in rows), state)
            torch.testing.assert_close(out, expected[:, t : t + 1])
    torch.testing.assert_close(state, last)


def test_an_empty_batch_and_views(device):
    tensors = small(7)
    with backend("triton"):
        out, last = gated_delta_chunked(*(x[:0] for x in tensors))
        assert out.shape == (0, 7, 2, D_VALUE) and last.shape == (0, 2, D_KEY, D_VALUE)
        views = [torch.nn.functional.pad(x, (1, 1))[..., 1:-1] for x in tensors]
        torch.testing.assert_close(gated_delta_chunked(*views)[0], gated_delta_chunked.reference(*tensors)[0])


def test_float64_is_refused_with_the_reason(device):
    with backend("triton"), pytest.raises(ValueError, match="float64"):
        gated_delta_chunked(*delta_inputs(4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_real_sizes_on_a_gpu(dtype):
    k = torch.randn(2, 300, 2, 128)
    k = k / k.norm(dim=-1, keepdim=True)
    q, v = torch.randn(2, 300, 2, 128) / 128**0.5, torch.randn(2, 300, 4, 128)
    tensors = [q, k, v, -0.1 * torch.rand(2, 300, 4), torch.rand(2, 300, 4), torch.randn(2, 4, 128, 128)]
    check(gated_delta_chunked, tensors, starts(300), TOLERANCE[dtype], dtype, "cuda")


@pytest.mark.gpu
def test_under_torch_compile_on_a_gpu():
    tensors = [x.cuda() for x in small(100)]
    upstream = [torch.randn_like(tensors[2]), torch.randn_like(tensors[-1])]
    found = with_gradients(torch.compile(gated_delta_chunked), tensors, upstream)
    expected = with_gradients(gated_delta_chunked.reference, tensors, upstream)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("d_key", [64, 128])
def test_compiled_for_hopper_with_its_tensor_cores_and_without_spills(d_key):
    names = ["_solve", "_correct", "_local_gradients", "_state_gradients", "_system_gradients"]
    for made in ahead("delta", names, d_key):
        assert made.spilled_bytes == 0 and made.warpgroup_products > 0, made
        assert made.shared_bytes <= 227 * 1024, made
