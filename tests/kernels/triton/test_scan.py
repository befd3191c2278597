"""The scan of gated linear recurrences in Triton, against the definition in float64: interpreted here, compiled on a
GPU."""

import pytest
import torch

from groundup.kernels import backend, gated_linear_chunked, gated_linear_recurrent
from tests.kernels.test_scan import inputs, starts
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
D_KEY, D_VALUE = 8, 6


def with_gradients(form, tensors, upstream, resets=None):
    """Output, last state, and the gradient of every input."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out, last = form(*leaves, resets)
    weights = [up.to(y.dtype) for up, y in zip(upstream, (out, last), strict=True)]
    return [out.detach(), last.detach(), *torch.autograd.grad([out, last], leaves, weights)]


def check(form, tensors, resets, tolerance, dtype, device="cpu"):
    """Errors on the scale of the largest number of each tensor. The first three inputs are of `dtype`."""
    tensors = [*(x.to(device, dtype) for x in tensors[:3]), *(x.to(device) for x in tensors[3:])]
    resets = None if resets is None else resets.to(device)
    upstream = [torch.randn(x.shape, device=device).to(x.dtype) for x in (tensors[2], tensors[-1])]
    with backend("triton"):
        found = with_gradients(form, tensors, upstream, resets)
    exact = with_gradients(form.reference, [x.double() for x in tensors], upstream, resets)
    for a, b, like in zip(found, exact, [tensors[2], tensors[-1], *tensors], strict=True):
        assert a.dtype == like.dtype and a.shape == b.shape
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


def small(seq, **options):
    """One row of two heads that share their keys: a program takes tens of milliseconds in the interpreter."""
    return inputs(seq, dtype=torch.float32, batch=1, heads=2, groups=1, **options)


# Of one token, the one gradient of its decay is a sum that may cancel: only float32 has digits to spare for that.
CASES = [
    (torch.float32, 1, False),
    *((dtype, *case) for dtype in TOLERANCE for case in [(7, True), (41, True), (41, False)]),
]


@pytest.mark.parametrize(("dtype", "seq", "documents"), CASES)
def test_forward_and_backward(device, dtype, seq, documents):
    tensors, resets = small(seq), starts(seq, 1) if documents else None
    check(gated_linear_chunked, tensors, resets, TOLERANCE[dtype], dtype, device)


def test_chunks_of_16_and_of_64_over_more_than_two_of_them(device):
    tensors, resets = small(129), starts(129, 1)
    resets[0, 20:90] = False  # chunks that the state passes through
    check(gated_linear_chunked, tensors, resets, 1e-5, torch.float32, device)
    by_16 = [x[:, :41] for x in tensors[:4]] + [tensors[4]]
    with backend("triton"):
        found = gated_linear_chunked(*by_16, chunk_size=16)
    for a, b in zip(found, gated_linear_chunked.reference(*by_16), strict=True):
        torch.testing.assert_close(a, b)


def test_two_rows_of_several_heads_and_blocks_of_values(device):
    from groundup.kernels.triton.scan import Blocks
    from groundup.kernels.triton.scan import gated_linear_chunked as twin

    tensors = inputs(7, dtype=torch.float32)
    q, k, v, *rest = tensors
    v, rest[1] = v.repeat(1, 1, 1, 4), rest[1].repeat(1, 1, 1, 4)
    upstream = [torch.randn_like(v), torch.randn_like(rest[1])]
    found = with_gradients(lambda *x: twin(*x, blocks=Blocks(16, 16, 4)), [q, k, v, *rest], upstream)
    expected = with_gradients(gated_linear_chunked.reference, [q, k, v, *rest], upstream)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_strong_decays_and_decays_to_zero(device):
    """exp(-50) per token among decays near 1, and log 0: neither overflows, nor makes NaN, nor loses the weak ones."""
    tensors = list(small(41))
    strong = torch.rand(tensors[3].shape) < 0.5
    tensors[3] = torch.where(strong, -50.0, 1e-3 * tensors[3])
    check(gated_linear_chunked, tensors, None, 2e-6, torch.float32, device)
    tensors[3][:, 9] = float("-inf")
    upstream = [torch.randn_like(tensors[2]), torch.randn_like(tensors[4])]
    with backend("triton"):
        found = with_gradients(gated_linear_chunked, [x.to(device) for x in tensors], upstream)
    assert all(x.isfinite().all() for x in found)


def test_a_future_token_changes_nothing_before_it(device):
    tensors = small(20)
    with backend("triton"):
        before, _ = gated_linear_chunked(*tensors)
        for x in tensors[:4]:
            x[:, 13:] = torch.randn_like(x[:, 13:]).abs().neg()
        after, _ = gated_linear_chunked(*tensors)
    assert torch.equal(before[:, :13], after[:, :13]) and not torch.equal(before[:, 13:], after[:, 13:])


def test_one_token_after_the_other_with_the_state_between_them(device):
    *rows, state = small(3)
    expected, last = gated_linear_recurrent.reference(*rows, state)
    with backend("triton"):
        for t in range(3):
            out, state = gated_linear_recurrent(*(x[:, t : t + 1] for x in rows), state)
            torch.testing.assert_close(out, expected[:, t : t + 1])
    torch.testing.assert_close(state, last)


def test_an_empty_batch_views_and_mixed_types(device):
    tensors = small(7)
    with backend("triton"):
        out, last = gated_linear_chunked(*(x[:0] for x in tensors))
        assert out.shape == (0, 7, 2, D_VALUE) and last.shape == (0, 2, D_KEY, D_VALUE)
        views = [torch.nn.functional.pad(x, (1, 1))[..., 1:-1] for x in tensors]
        torch.testing.assert_close(gated_linear_chunked(*views)[0], gated_linear_chunked.reference(*tensors)[0])
        half = [x.bfloat16() for x in tensors[:2]]  # as in Mamba, whose v = dt x is float32
        found, _ = gated_linear_chunked(*half, *tensors[2:])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gated_linear_chunked.reference(*half, *tensors[2:])[0])


def test_what_the_kernel_does_not_cover_is_refused_with_the_reason(device):
    with backend("triton"):
        with pytest.raises(ValueError, match="one per channel"):
            gated_linear_chunked(*inputs(4, by_channel=True, dtype=torch.float32))
        with pytest.raises(ValueError, match="float64"):
            gated_linear_chunked(*inputs(4))
        wide = torch.zeros(1, 2, 1, 300)
        with pytest.raises(ValueError, match="at most 128 channels"):
            gated_linear_chunked(wide, wide, torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 1))


def test_it_is_differentiated_once(device):
    q, *rest = small(3)
    q.requires_grad_()
    with backend("triton"):
        out, _ = gated_linear_chunked(q, *rest)
    upstream = torch.ones_like(out, requires_grad=True)
    (gradient,) = torch.autograd.grad(out, q, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_real_sizes_on_a_gpu(dtype):
    """Mamba-2's 128 of d_state and 64 of d_head."""
    q, k = torch.randn(2, 2, 300, 1, 128) / 128**0.25
    v, g = torch.randn(2, 300, 4, 64), -0.3 * torch.rand(2, 300, 4, 1)
    tensors = [q, k, v, g, torch.randn(2, 4, 128, 64)]
    check(gated_linear_chunked, tensors, starts(300), TOLERANCE[dtype], dtype, "cuda")


@pytest.mark.gpu
def test_under_torch_compile_on_a_gpu():
    tensors = [x.cuda() for x in small(100)]
    upstream = [torch.randn_like(tensors[2]), torch.randn_like(tensors[4])]
    compiled = torch.compile(gated_linear_chunked)
    found = with_gradients(compiled, tensors, upstream)
    expected = with_gradients(gated_linear_chunked.reference, tensors, upstream)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def ahead(module, names, d_key):
    """Kernels of a scan for one size of key in bfloat16, compiled with the blocks that they are launched with."""
    from groundup.kernels.triton.scan import blocks_for

    streams = dict.fromkeys(["q", "k", "v", "dout", "out", "dv", "u", "w", "du"], "*bf16:16")
    float32 = ["g", "beta", "inverse", "initial", "starts", "last", "dlast", "dends", "dinitial", "dq", "dk", "dg"]
    sizes = dict.fromkeys(["seq", "heads", "d_key", "d_value"], "i32:16") | {"share": "i32"}
    types = streams | dict.fromkeys([*float32, "dbeta"], "*fp32:16") | sizes | {"resets": "*u8:16"}
    constants = {"SIZE": 64, "RESETS": True, "BLOCK_K": d_key, "PRECISION": "tf32"}
    blocks, kernels = blocks_for(d_key, 128, 2), []
    for name in names:
        sums = name in ("_gradients", "_system_gradients")
        tile = constants | {"BLOCK_V": blocks.sums if sums else blocks.value}
        kernels.append(Kernel(module, name, types, tile, warps=blocks.warps, stages=1 if sums else 2))
    return compile_ahead(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("d_key", [64, 128])
def test_compiled_for_hopper_with_its_tensor_cores_and_without_spills(d_key):
    for made in ahead("scan", ["_states", "_outputs", "_state_gradients", "_gradients"], d_key):
        assert made.spilled_bytes == 0 and made.warpgroup_products > 0, made
        assert made.shared_bytes <= 227 * 1024, made
