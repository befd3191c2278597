r"""FlashAttention-2 (Dao 2023, arXiv:2307.08691): softmax attention without a matrix of scores in DRAM.

Forward, a program holds a block of queries and walks over blocks of keys. With the online softmax (see
`triton/softmax.py`) the output so far is scaled down whenever a larger maximum comes. Written are the output and, per
query, lse = log sum_j exp(s_ij). Read are q once and, per block of queries, the keys and values it may see: of
q_seq x k_seq scores none ever leaves the registers, and the arithmetic, 2 q_seq k_seq (d_head + d_value) per head,
is what takes the time.

Backward, the weights P_ij = exp(s_ij - lse_i) are computed again. From O = P V,

    dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta_i)  with  delta_i = sum_j P_ij dP_ij = O_i . dO_i,
    dQ = scale dS K,  dK = scale dS^T Q,

and dS times 1 - (s / c)^2 in the middle where scores were capped softly. delta is a sum over channels, not keys: that
is what makes one pass enough. One kernel holds a block of keys (dK and dV of all query heads of its group, in
registers), another a block of queries (dQ), so that nothing is added atomically: gradients are the same bits each time.
A sink is a key without a value: dP = 0, so its gradient is -sum_i exp(sink - lse_i) delta_i. The gradient of an ALiBi
slope is -sum_ij dS_ij |distance|.

What is not visible is skipped in whole tiles: see `_tiles`. Few queries against many keys go to `_decode`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from groundup.kernels import _dispatch
from groundup.kernels.attention import document_offsets
from groundup.kernels.triton import _flash
from groundup.kernels.triton._decode import decode, is_decode
from groundup.kernels.triton._math import LOG2_E, ceil_div, channel_block, differentiable_once, product_precision
from groundup.kernels.triton._support import refuses_device, tuned_tuple
from groundup.kernels.triton._tiles import Mask, Tiles, tiles_of_keys, tiles_of_queries

MOST_CHANNELS = 256
"""Per head: a block of queries, one of keys and one of values have to fit into registers and shared memory."""


class Blocks(NamedTuple):
    """Queries and keys per tile, groups of 32 threads, and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


CANDIDATES = {
    f"attention_{kernel}": [
        Blocks(*numbers)._asdict()
        for numbers in ((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2))
        + ((128, 128, 8, 2), (32, 128, 4, 2), (128, 32, 4, 3))
    ]
    for kernel in ("forward", "keys", "queries")
}


def refuses_attention(
    q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, k_pos: Tensor, *, causal_from_zero: bool = False, **options: Any
) -> str | None:
    """Unless the kernel is asked for by name, plain attention is left to torch."""
    tensors = [option for option in options.values() if isinstance(option, Tensor)]
    fault = refuses_device(q, k, v, q_pos, k_pos, *tensors) or _shape_fault(q, k, v, **options)
    if fault is None and _dispatch._requested is None and causal_from_zero and _is_plain(q, k, **options):
        return "torch's fused kernel has all of plain attention, and which is faster is not yet measured"
    return fault


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor,
    k_pos: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    sink_tokens: int = 0,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    causal_from_zero: bool = False,
) -> Tensor:
    if window is not None and causal_from_zero and window >= max(q.shape[1], k.shape[1]):
        window = None
    mask = Mask(
        q.shape[1], k.shape[1], causal, window,
        None if causal_from_zero else _integers(q_pos), None if causal_from_zero else _integers(k_pos),
        _integers(q_segments), _integers(k_segments),
        _anchors(k_pos, k_segments, sink_tokens, causal_from_zero) if window is not None and sink_tokens else None,
    )  # fmt: skip
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    cap = None if softcap is None else float(softcap)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if is_decode(q, k, v, sinks, slopes):
        return decode(q, k, v, mask, factor, cap, sinks, slopes)
    return _Attention.apply(q, k, v, sinks, slopes, factor, cap, *mask)


def default_blocks(kernel: str, channels: int, element_bytes: int) -> Blocks:
    """For "forward", "keys" (dK and dV) or "queries" (dQ), with d_head or d_value, the larger, in powers of two.

    Accumulators in float32 are what limits them: 128 queries x 128 channels are 64 registers of each of 256 threads.
    Up to 128 channels nothing spills from registers, whatever the mask. At 256 both gradients of a block of keys leave
    few: with positions, segments, a window and a soft cap at once some bytes do, and blocks are small. Float32 has no
    tensor cores at full precision; its tiles are small, as both factors pass through registers.
    """
    if element_bytes == 4:
        return Blocks(16, 32 if channels <= 64 else 16, 4 if channels <= 64 else 8, 1)
    if kernel == "forward":
        return Blocks(128, 64, 8, 3 if channels <= 128 else 2)
    if kernel == "keys":
        return Blocks(64 if channels <= 64 else 32, 128, 8, 2) if channels <= 128 else Blocks(16, 32, 4, 1)
    if channels <= 64:
        return Blocks(128, 64, 8, 2)
    return Blocks(128, 32, 8, 3) if channels <= 128 else Blocks(64, 16, 4, 1)


def traffic_attention(
    batch: int, q_seq: int, k_seq: int, heads: int, kv_heads: int, d_head: int, d_value: int, element_bytes: int,
    *, backward: bool = False,
) -> int:  # fmt: skip
    """Bytes from and to DRAM if the keys and values of a head, once read, stay in the L2 cache.

    Forward: q, k, v, the output and lse. Backward: those, dO, lse and delta in both kernels, and the three gradients.
    """
    queries, keys = batch * q_seq * heads, batch * k_seq * kv_heads
    forward = (queries + keys) * (d_head + d_value) * element_bytes + 4 * queries
    if not backward:
        return forward
    delta = queries * (2 * d_value * element_bytes + 4)
    kernels = 2 * forward + 8 * queries
    return delta + kernels + (queries * d_head + keys * (d_head + d_value)) * element_bytes


def _is_plain(q: Tensor, k: Tensor, **options: Any) -> bool:
    window = options.get("window")
    inside = window is None or window >= max(q.shape[1], k.shape[1])
    return inside and all(options.get(name) is None for name in ("softcap", "q_segments", "sinks", "slopes"))


def _shape_fault(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> str | None:
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v are of one type for the kernel, not of {q.dtype}, {k.dtype} and {v.dtype}"
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        return f"the shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)} of q, k and v do not fit"
    if 0 in (q.shape[1], q.shape[3], k.shape[1], v.shape[3]):
        return f"there is nothing to compute for shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if max(q.shape[3], v.shape[3]) > MOST_CHANNELS:
        return f"a head has {max(q.shape[3], v.shape[3])} channels, and at most {MOST_CHANNELS} fit into registers"
    if (options.get("q_segments") is None) != (options.get("k_segments") is None):
        return "segments of the queries need segments of the keys"
    return None


def _integers(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.int().contiguous()


def _anchors(k_pos: Tensor, k_segments: Tensor | None, sink_tokens: int, counted: bool) -> Tensor:
    """The first `sink_tokens` of each document, which a window does not hide."""
    k_pos = k_pos[:1] if counted and k_segments is None else k_pos
    return (document_offsets(k_pos, k_segments) < sink_tokens).to(torch.int8).contiguous()


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, the output, and lse in base 2 (batch, heads, q_seq)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        slopes: Tensor | None,
        scale: float,
        softcap: float | None,
        *mask_fields: Any,
    ) -> Tensor:
        mask = Mask(*mask_fields)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
        launch_forward(q, k, v, out, lse, sinks, slopes, mask, scale, softcap)
        ctx.save_for_backward(q, k, v, sinks, slopes, out, lse, *mask[4:])
        ctx.mask, ctx.scale, ctx.softcap = mask[:4], scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        differentiable_once(ctx)
        q, k, v, sinks, slopes, out, lse, *given = ctx.saved_tensors
        mask, d_out = Mask(*ctx.mask, *given), upstream[0].contiguous()
        delta = (out.float() * d_out.float()).sum(-1).transpose(1, 2).contiguous()
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        first = (q, k, v, d_out, lse, delta)
        launch_keys(*first, dk, dv, slopes, mask, ctx.scale, ctx.softcap)
        d_slopes = launch_queries(*first, dq, slopes, mask, ctx.scale, ctx.softcap)
        d_sinks = None if sinks is None else _sink_gradient(sinks, lse, delta)
        return dq, dk, dv, d_sinks, d_slopes, *[None] * (2 + len(Mask._fields))


def _sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    shares = torch.exp2(sinks.float()[:, None] * LOG2_E.value - lse)
    return -(shares * delta).sum((0, 2)).to(sinks.dtype)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, sinks: Tensor | None, slopes: Tensor | None,
    mask: Mask, scale: float, softcap: float | None, blocks: Blocks | None = None,
) -> None:  # fmt: skip
    """Fills `out` (contiguous) and `lse`. `blocks` are other ones than the default's."""
    shape = blocks or _blocks("forward", q, v)
    tiles = tiles_of_queries(mask, q.device, shape.queries, shape.keys)
    if out.numel():
        _flash.forward[(ceil_div(q.shape[1], shape.queries), q.shape[0] * q.shape[2])](
            q, k, v, out, lse, sinks, slopes, *_mask_arguments(mask, tiles), *_strides(q, k, v),
            q.shape[2], mask.rows, scale, softcap, **_constants(q, k, v, shape),
        )  # fmt: skip


def launch_keys(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, lse: Tensor, delta: Tensor, dk: Tensor, dv: Tensor,
    slopes: Tensor | None, mask: Mask, scale: float, softcap: float | None, blocks: Blocks | None = None,
) -> None:  # fmt: skip
    """Fills `dk` and `dv`, both contiguous."""
    shape = blocks or _blocks("keys", q, v)
    tiles = tiles_of_keys(mask, q.device, shape.queries, shape.keys)
    if k.numel():
        _flash.backward_keys[(ceil_div(k.shape[1], shape.keys), k.shape[0] * k.shape[2])](
            q, k, v, d_out, lse, delta, dk, dv, slopes, *_mask_arguments(mask, tiles), *_strides(q, k, v),
            q.shape[2], mask.rows, scale, softcap, **_constants(q, k, v, shape),
        )  # fmt: skip


def launch_queries(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, lse: Tensor, delta: Tensor, dq: Tensor,
    slopes: Tensor | None, mask: Mask, scale: float, softcap: float | None, blocks: Blocks | None = None,
) -> Tensor | None:  # fmt: skip
    """Fills `dq`, contiguous; returns the gradient of the slopes."""
    shape = blocks or _blocks("queries", q, v)
    tiles = tiles_of_queries(mask, q.device, shape.queries, shape.keys)
    grid = (ceil_div(q.shape[1], shape.queries), q.shape[0] * q.shape[2])
    # A number per program, added up afterwards: the sum is in the same order each time.
    falls = None if slopes is None else lse.new_zeros(q.shape[0], q.shape[2], grid[0])
    if dq.numel():
        _flash.backward_queries[grid](
            q, k, v, d_out, lse, delta, dq, slopes, falls, *_mask_arguments(mask, tiles), *_strides(q, k, v),
            q.shape[2], mask.rows, scale, softcap, **_constants(q, k, v, shape),
        )  # fmt: skip
    return None if slopes is None or falls is None else falls.sum((0, 2)).to(slopes.dtype)


def _blocks(kernel: str, q: Tensor, v: Tensor) -> Blocks:
    channels = channel_block(q.shape[3]), channel_block(v.shape[3])
    default = default_blocks(kernel, max(channels), q.element_size())
    return tuned_tuple(f"attention_{kernel}", (q.dtype, *channels), default)


def _constants(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> dict[str, Any]:
    return {
        "GROUPS": q.shape[2] // k.shape[2],
        "D": q.shape[3],
        "DV": v.shape[3],
        "BLOCK_D": channel_block(q.shape[3]),
        "BLOCK_DV": channel_block(v.shape[3]),
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "PRECISION": product_precision(q.dtype),
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _mask_arguments(mask: Mask, tiles: Tiles) -> tuple[Any, ...]:
    return (*mask[4:], *tiles, mask.q_seq, mask.k_seq, mask.window, mask.causal)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of batch, token and head; channels lie side by side."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])
