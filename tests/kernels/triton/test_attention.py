"""FlashAttention in Triton against the reference in float64: interpreted here, compiled where a GPU is.

Interpreted, tiles are 16 x 16, so that short texts have several.
"""

import importlib

import pytest
import torch

from groundup.kernels import attention, backend, visible
from tests.kernels.test_attention import counted
from tests.kernels.triton.ahead import Kernel, compile_ahead
from tests.kernels.triton.test_cross_entropy import LargestBytes

pytest.importorskip("triton")
module = importlib.import_module("groundup.kernels.triton.attention")
tiles = importlib.import_module("groundup.kernels.triton._tiles")
few = importlib.import_module("groundup.kernels.triton._decode")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SEQ = 41
BLOCKS = module.default_blocks


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(module, "default_blocks", lambda *_: module.Blocks(16, 16, 4, 1))
        monkeypatch.setattr(few, "KEY_BLOCK", {2: 16, 4: 16})
        monkeypatch.setattr(few, "_processors", lambda _: 6)


def tensors(q_seq=SEQ, k_seq=None, batch=2, heads=2, kv_heads=1, d_head=16, d_value=None, **kind):
    q = torch.randn(batch, q_seq, heads, d_head).to(**kind)
    k = torch.randn(batch, k_seq or q_seq, kv_heads, d_head).to(**kind)
    return q, k, torch.randn(batch, k_seq or q_seq, kv_heads, d_value or d_head).to(**kind)


def documents(seq=SEQ):
    """Packed: each row has others, shorter and longer than a tile."""
    return torch.stack([torch.arange(seq) // 15, (torch.arange(seq) > 36).long()])


def scattered(seq=SEQ):
    """A row in no order with a few empty slots, and a row that is padded on the left."""
    return torch.stack([torch.randperm(seq) - 4, torch.arange(seq) - 7]).clamp(min=-1)


def outcome(function, streams, positions, upstream, dtype, options):
    """Output and the gradients of all that has one, computed in `dtype`."""
    options = {n: x.to(upstream.device) if isinstance(x, torch.Tensor) else x for n, x in options.items()}
    extra = [n for n in ("sinks", "slopes") if n in options]
    leaves = [x.detach().to(dtype).requires_grad_() for x in (*streams, *(options[n] for n in extra))]
    options |= dict(zip(extra, leaves[3:], strict=True))
    out = function(*leaves[:3], *positions, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def hold(device, streams, positions, dtype, **options):
    streams = [x.to(device=device, dtype=dtype) for x in streams]
    positions = [x.to(device) for x in positions]
    upstream = torch.randn(*streams[0].shape[:3], streams[2].shape[3], device=device).to(dtype)
    with backend("triton"):
        got = outcome(attention, streams, positions, upstream, dtype, options)
    exact = outcome(attention.reference, streams, positions, upstream, torch.float64, options)
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        # 16-bit weights and outputs are rounded before they are added up: the error is one of the largest terms.
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=TOLERANCE[dtype])


CASES = {
    "causal": {},
    "positions are not read": {"causal_from_zero": True},
    "both sides": {"causal": False, "causal_from_zero": True},
    "window": {"window": 9, "causal_from_zero": True},
    "window of one": {"window": 1},
    "window on both sides": {"window": 7, "causal": False},
    "documents": {"q_segments": documents(), "k_segments": documents(), "causal_from_zero": True},
    "first tokens of documents": {
        "window": 3, "sink_tokens": 2, "q_segments": documents(), "k_segments": documents(),
    },
    "first tokens": {"window": 5, "sink_tokens": 3, "causal_from_zero": True},
    "soft cap": {"softcap": 1.5, "scale": 0.4},
    "sinks": {"sinks": torch.tensor([0.5, float("-inf")])},
    "slopes": {"slopes": torch.tensor([1.0, 0.25])},
    "everything": {
        "window": 20, "sink_tokens": 1, "softcap": 2.0, "scale": 0.5, "sinks": torch.ones(2),
        "slopes": torch.tensor([0.3, 0.0]), "q_segments": documents(), "k_segments": documents(),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(device, case):
    hold(device, tensors(), [counted(SEQ), counted(SEQ)], torch.float32, **CASES[case])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["causal", "documents"])
def test_of_16_bits_and_two_groups_of_heads(device, case, dtype):
    hold(device, tensors(heads=4, kv_heads=2), [counted(SEQ), counted(SEQ)], dtype, **CASES[case])


@pytest.mark.parametrize("case", ["causal", "both sides", "everything"])
def test_scattered_positions_with_padding(device, case):
    options = {n: x for n, x in CASES[case].items() if n != "causal_from_zero"}
    positions = scattered()
    hold(device, tensors(), [positions, positions], torch.float32, **options)


@pytest.mark.parametrize("lengths", [(1, 1), (7, 7), (33, 129), (129, 16)])
def test_awkward_lengths(device, lengths):
    positions = [counted(n, 1) + n for n in lengths]
    streams = tensors(*lengths, batch=1, heads=2)
    hold(device, streams, positions, torch.float32, causal=lengths[0] == lengths[1])


@pytest.mark.parametrize("widths", [(24, 24), (8, 40), (80, 16)])
def test_widths_are_filled_up(device, widths):
    streams = tensors(20, d_head=widths[0], d_value=widths[1], heads=3, kv_heads=3)
    hold(device, streams, [counted(20), counted(20)], torch.float32)


def test_strided_inputs(device):
    q, k, v = tensors(20, heads=4, kv_heads=4, d_head=32)
    whole = torch.cat([q, k, v], 2)
    views = [*whole.split(4, 2)[:2], torch.randn(2, 4, 20, 64)[..., ::2].transpose(1, 2)]
    hold(device, views, [counted(20), counted(20)], torch.float32)
    assert not any(x.is_contiguous() for x in views)


def test_empty_batch(device):
    hold(device, tensors(20, batch=0), [counted(20, 0), counted(20, 0)], torch.float32)


def test_a_later_token_changes_nothing(device):
    q, k, v = (x.to(device) for x in tensors())
    at = counted(SEQ).to(device)
    with backend("triton"):
        before = attention(q, k, v, at, at)
        q, k, v = (torch.cat([x[:, :30], torch.randn_like(x[:, 30:])], 1) for x in (q, k, v))
        after = attention(q, k, v, at, at)
    assert torch.equal(before[:, :30], after[:, :30]) and not torch.equal(before[:, 30:], after[:, 30:])


def test_weights_of_a_query_sum_to_one(device):
    q, k, v = (x.to(device) for x in tensors())
    at = counted(SEQ).to(device)
    with backend("triton"):
        for options in ({}, {"window": 3}, {"softcap": 2.0}, {"causal": False}):
            out = attention(q, k, torch.ones_like(v), at, at, **options)
            torch.testing.assert_close(out, torch.ones_like(out))
        halves = attention(
            0 * q[:, :1], k[:, :1], torch.ones_like(v[:, :1]), at[:, :1], at[:, :1], sinks=q.new_zeros(2)
        )
    torch.testing.assert_close(halves, torch.full_like(halves, 0.5))


def test_tiles_out_of_sight_are_never_loaded(device):
    """What is not a number there would show, as zero times it is none either."""
    q, k, v = (x.to(device) for x in tensors(64))
    at, segments = counted(64).to(device), (counted(64) // 32).to(device)
    with backend("triton"):
        clean = (
            attention(q, k, v, at, at, window=16),
            attention(q, k, v, at, at, q_segments=segments, k_segments=segments),
        )
        k[:, :16], v[:, :16] = float("nan"), float("nan")
        assert torch.equal(attention(q, k, v, at, at, window=16)[:, 48:], clean[0][:, 48:])
        inside = attention(q, k, v, at, at, q_segments=segments, k_segments=segments)
    assert torch.equal(inside[:, 32:], clean[1][:, 32:]) and inside[:, :16].isnan().all()


def test_no_square_of_scores_is_ever_made(device):
    """Forward and backward, the largest tensor is one of an input's size; a mask of a byte per pair would be larger."""
    seq = 160
    q, k, v = (x.to(device).requires_grad_() for x in tensors(seq, batch=1, heads=1))
    at = counted(seq, 1).to(device)
    with backend("triton"), LargestBytes() as largest:
        attention(q, k, v, at, at, window=40).sum().backward()
    assert largest.most == q.numel() * 4 < seq * seq


def brute_force(mask):
    q_pos, k_pos = (
        x if x is not None else counted(n, 1) for x, n in ((mask.q_pos, mask.q_seq), (mask.k_pos, mask.k_seq))
    )
    return visible(
        q_pos, k_pos, causal=mask.causal, window=mask.window, q_segments=mask.q_segments, k_segments=mask.k_segments
    )  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 6, 30])
@pytest.mark.parametrize("kind", ["counted", "scattered", "documents"])
def test_lists_of_tiles_against_the_mask(causal, window, kind):
    """Nothing of what is skipped is visible, all of what is called whole is, and each tile is listed once."""
    at = scattered().int() if kind == "scattered" else None
    of = documents().int() if kind == "documents" else None
    mask = tiles.Mask(SEQ, SEQ, causal, window, at, at, of, of)
    shown = brute_force(mask)
    partial, whole = tiles.classify(mask, torch.device("cpu"), 8, 4)
    for row, block, other in torch.cartesian_prod(*map(torch.arange, whole.shape)).tolist():
        tile = shown[row, 8 * block : 8 * (block + 1), 4 * other : 4 * (other + 1)]
        assert tile.all() or not whole[row, block, other]
        assert not tile.any() or partial[row, block, other] or whole[row, block, other]
    for listed, (p, w) in (
        (tiles.tiles_of_queries(mask, torch.device("cpu"), 8, 4), (partial, whole)),
        (tiles.tiles_of_keys(mask, torch.device("cpu"), 8, 4), (partial.mT, whole.mT)),
    ):
        for order, (masked, visited), part, full in zip(
            *(x.flatten(0, 1).tolist() for x in (*listed, p, w)), strict=True
        ):
            assert set(order[:masked]) == {i for i, x in enumerate(part) if x}
            assert set(order[masked:visited]) == {i for i, x in enumerate(full) if x}


def test_a_causal_mask_halves_the_work():
    mask = tiles.Mask(64, 64, True)
    made = tiles.tiles_of_queries(mask, torch.device("cpu"), 16, 16)
    assert made.counts[0].tolist() == [[1, 1], [1, 2], [1, 3], [1, 4]]
    assert tiles.tiles_of_queries(mask, torch.device("cpu"), 16, 16) is made


def test_lists_that_inference_made_serve_training(device):
    q, k, v = (x.to(device) for x in tensors(50))
    at = counted(50).to(device)
    with backend("triton"), torch.inference_mode():
        attention(q, k, v, at, at, causal_from_zero=True)
    with backend("triton"):
        attention(q.requires_grad_(), k, v, at, at, causal_from_zero=True).sum().backward()
    assert q.grad is not None


def test_positions_that_are_promised_are_not_read(device):
    q, k, v = (x.to(device) for x in tensors(20))
    wrong = torch.full((2, 20), -1, device=device)
    with backend("triton"):
        got = attention(q, k, v, wrong, wrong, causal_from_zero=True)
    torch.testing.assert_close(got, attention.reference(q, k, v, *[counted(20).to(device)] * 2))


def test_what_is_refused_and_why(device):
    q, k, v = (x.to(device) for x in tensors(4))
    at = counted(4).to(device)
    with backend("triton"):
        for streams, reason in (
            ([x.double() for x in (q, k, v)], "float64"),
            ((q, k, v.bfloat16()), "of one type"),
            ((q, k.repeat(1, 1, 3, 1), v), "do not fit"),
            ((q[:, :0], k, v), "nothing to compute"),
            ([x.repeat(1, 1, 1, 17) for x in (q, k, v)], "at most 256"),
        ):
            with pytest.raises(ValueError, match=reason):
                attention(*streams, at, at)
        assert module.refuses_attention(q, k, v, at, at, causal_from_zero=True) is None
    plain = module.refuses_attention(q, k, v, at, at, causal_from_zero=True, window=4)
    assert plain is not None and "not yet measured" in plain
    assert module.refuses_attention(q, k, v, at, at, causal_from_zero=True, window=3) is None
    assert module.refuses_attention(q, k, v, at, at) is None


def test_a_second_derivative_is_an_error_not_a_zero(device):
    q, k, v = (x.to(device) for x in tensors(4))
    with backend("triton"):
        out = attention(q.requires_grad_(), k, v, *[counted(4).to(device)] * 2)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(out.sum(), q, create_graph=True)


def test_bytes_by_hand():
    """One head of one channel, 2 queries, 3 keys, 2 bytes each: 4 + 4 of q and out, 6 + 6 of k and v, 8 of lse."""
    assert module.traffic_attention(1, 2, 3, 1, 1, 1, 1, 2) == 28
    # delta: out, dO, delta; both kernels: as forward, with dO for out, and delta; then dq, dk, dv.
    assert module.traffic_attention(1, 2, 3, 1, 1, 1, 1, 2, backward=True) == (8 + 8) + 2 * (28 + 8) + 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 9}, {"softcap": 1.0}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}, {"causal": False},
     {"slopes": torch.tensor([1.0, 0.5, 0.2, 0.0])}, {"window": 5, "sink_tokens": 3}, {"q_segments": True}],
)  # fmt: skip
def test_decode_over_spans(device, options, dtype):
    """Three queries of each row against a cache with empty slots, in no order; one query is padding."""
    q, k, v = (x.to(device=device, dtype=dtype) for x in tensors(3, 75, heads=4, kv_heads=2, d_head=24))
    k_pos = torch.stack([torch.randperm(75), torch.arange(75).masked_fill(torch.arange(75) >= 60, -1)])
    q_pos = torch.tensor([[68, 69, 70], [-1, 58, 59]])
    segments = {"q_segments": q_pos // 20, "k_segments": k_pos // 20} if "q_segments" in options else {}
    given = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in (options | segments).items()}
    q_pos, k_pos = q_pos.to(device), k_pos.to(device)
    assert few.is_decode(q, k, v)
    with backend("triton"):
        got = attention(q, k, v, q_pos, k_pos, **given)
    wide = {n: x.double() if n in ("sinks", "slopes") else x for n, x in given.items()}
    exact = attention.reference(q.double(), k.double(), v.double(), q_pos, k_pos, **wide)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=TOLERANCE[dtype])


def test_decode_reads_no_slots_that_show_nothing(device):
    q, k, v = (x.to(device) for x in tensors(1, 64))
    k_pos = counted(64).to(device).masked_fill(counted(64).to(device) >= 20, -1)
    k[:, 32:], v[:, 32:] = float("nan"), float("nan")
    with backend("triton"):
        got = attention(q, k, v, k_pos[:, 19:20], k_pos)
    expected = attention.reference(q, k[:, :20], v[:, :20], k_pos[:, 19:20], k_pos[:, :20])
    torch.testing.assert_close(got, expected)


def test_gradients_do_not_go_through_decode(device):
    q, k, v = (x.to(device) for x in tensors(1, 30))
    assert few.is_decode(q, k, v) and not few.is_decode(q.requires_grad_(), k, v)
    with torch.no_grad():
        assert few.is_decode(q, k, v)
    hold(device, (q, k, v), [counted(30)[:, 29:], counted(30)], torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("d_head", [64, 128, 192])
def test_real_sizes_on_a_gpu(d_head, dtype):
    segments = (counted(1000) // 300).clone()
    options = {"window": 200, "sink_tokens": 4, "softcap": 20.0, "q_segments": segments, "k_segments": segments}
    for case in ({"causal_from_zero": True}, options):
        hold("cuda", tensors(1000, heads=4, kv_heads=2, d_head=d_head), [counted(1000), counted(1000)], dtype, **case)


@pytest.mark.gpu
def test_under_torch_compile_on_a_gpu():
    streams = [x.cuda() for x in tensors(500, heads=4, kv_heads=2, d_head=64, dtype=torch.bfloat16)]
    at, upstream = [counted(500).cuda()] * 2, torch.randn(2, 500, 4, 64, device="cuda", dtype=torch.bfloat16)
    with backend("triton"):
        for options in ({"causal_from_zero": True}, {"window": 100, "softcap": 10.0}):
            compiled = torch.compile(attention, fullgraph=True)
            got, eager = (
                outcome(f, streams, at, upstream, torch.bfloat16, options) for f in (compiled, attention)
            )  # fmt: skip
            for a, b in zip(got, eager, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


POINTERS = {
    "forward": (["q", "k", "v", "out"], ["lse"], ["sinks", "slopes"]),
    "backward_keys": (["q", "k", "v", "d_out", "dk", "dv"], ["lse", "delta"], ["slopes"]),
    "backward_queries": (["q", "k", "v", "d_out", "dq"], ["lse", "delta"], ["slopes", "falls"]),
}
MASK = {
    "q_pos": "*i32:16", "k_pos": "*i32:16", "q_segments": "*i32:16", "k_segments": "*i32:16", "anchors": "*i8:16",
    "window": "i32", "softcap": "fp32",
}  # fmt: skip


def ahead(kernel, shape, channels, given, element="bf16"):
    halves, singles, unused = POINTERS[kernel]
    signature = {n: f"*{element}:16" for n in halves} | dict.fromkeys(singles, "*fp32:16") | given
    signature |= dict.fromkeys(["order", "counts"], "*i32:16") | dict.fromkeys(["q_seq", "k_seq"], "i32:16")
    signature |= {f"{x}_{axis}": "i32:16" for x in "qkv" for axis in ("batch", "token", "head")}
    signature |= {"heads": "i32", "mask_rows": "i32", "scale": "fp32"}
    sizes = {
        "CAUSAL": True, "GROUPS": 4, "D": channels, "DV": channels, "BLOCK_D": channels, "BLOCK_DV": channels,
        "BLOCK_Q": shape.queries, "BLOCK_K": shape.keys, "PRECISION": "ieee",
    }  # fmt: skip
    nothing = dict.fromkeys({*MASK, *unused} - given.keys())
    return Kernel("_flash", kernel, signature, nothing | sizes, warps=shape.warps, stages=shape.stages)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [64, 128])
def test_compiled_for_hopper_on_tensor_cores_without_spills(channels):
    """Plain, and with positions, segments, a window and a soft cap at once; loads run ahead of the products."""
    cases = [("forward", "forward"), ("backward_keys", "keys"), ("backward_queries", "queries")]
    made = compile_ahead(
        [ahead(k, BLOCKS(kind, channels, 2), channels, given) for k, kind in cases for given in ({}, MASK)]
    )
    for kernel in made:
        assert kernel.spilled_bytes == 0, made
        assert kernel.warpgroup_products > 0 and kernel.warp_products == 0 and kernel.asynchronous_copies > 0, made
        assert kernel.shared_bytes <= 227 * 1024, made


@pytest.mark.slow
def test_decode_compiled_for_hopper_without_spills():
    """16 rows are too few for the tensor-core instructions of a group of four warps; those of one are used."""
    halves = dict.fromkeys(["q", "k", "v"], "*bf16:16")
    numbers = dict.fromkeys(["q_seq", "kv_heads", "mask_rows", "per_span"], "i32") | {"k_seq": "i32:16"}
    numbers |= {f"{x}_{axis}": "i32:16" for x in "qkv" for axis in ("batch", "token", "head")}
    signature = halves | numbers | dict.fromkeys(["parts", "levels"], "*fp32:16") | {"scale": "fp32"} | MASK
    sizes = {"CAUSAL": True, "GROUPS": 4, "D": 128, "DV": 128, "ROWS": 16, "BLOCK_D": 128, "BLOCK_DV": 128}
    sizes |= {"BLOCK_K": 64, "PRECISION": "ieee", "slopes": None}
    joined = {"parts": "*fp32:16", "levels": "*fp32:16", "out": "*bf16:16", "kv_heads": "i32", "spans": "i32"}
    made = compile_ahead(
        [
            Kernel("_decode", "_span", signature, sizes, warps=4, stages=2),
            Kernel("_decode", "join_spans", joined, {"sinks": None, "GROUPS": 4, "DV": 128, "BLOCK_DV": 128}, warps=1),
        ]
    )
    assert [kernel.spilled_bytes for kernel in made] == [0, 0], made
    assert made[0].warp_products > 0
