"""Bytes that each operation of the ledger moves: every operand is read once, every result is written once.

That is the least any implementation can do without fusing the operation with its neighbours; one that reads a matrix
again for each tile moves more. Activations and matrices count in the type of the computation. Fused attention keeps
its scores on the chip, so that queries, keys, values and the output are all that moves.
"""

from typing import NamedTuple

import torch
from torch import nn

from groundup.accounting.experts import ROUTER_FLOPS
from groundup.accounting.flops import (
    ACTIVATION_FLOPS,
    NORM_FLOPS,
    ROPE_FLOPS,
    Operation,
)
from groundup.accounting.recurrence import CELL_FLOPS, DECAY_FLOPS, NORM_AND_GATE_FLOPS, TANH_FLOPS, RecurrentConfig
from groundup.kernels import chunk_length
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    GatedDeltaConfig,
    GatedLinearConfig,
    LatentAttentionConfig,
    Mamba2Config,
)

FP32_BYTES = 4
NORMS = ("norm", "qk_norm", "latent_norm", "final_norm")
INNER_ATTENTION = ("scores", "softcap", "values", "softmax", "alibi")
"""The rows that a fused attention kernel does in one pass."""


class Moved(NamedTuple):
    """Numbers (not bytes) read and written by one operation in the forward and in the backward pass."""

    forward: int
    backward: int


class Span(NamedTuple):
    """How much a pass looks at: `queries` of `batch` rows on `keys` each, `pairs` of them visible in all rows."""

    batch: int
    queries: int
    keys: int
    pairs: int


def matmul_moved(rows: int, inner: int, columns: int, matrices: int = 1) -> Moved:
    """(rows x inner) @ (inner x columns); rows may be spread over several matrices, as with experts.

    The backward pass has two products of the same three shapes: dX = dY W^T and dW = X^T dY.

    >>> matmul_moved(2, 3, 5)
    Moved(forward=31, backward=62)
    """
    once = rows * inner + matrices * inner * columns + rows * columns
    return Moved(once, 2 * once)


def passes(elements: int, forward: int, backward: int) -> Moved:
    """An elementwise operation that goes over `elements` so many times: a norm reads one and writes one."""
    return Moved(forward * elements, backward * elements)


def row_moved(row: Operation, block: nn.Module, config: BlockConfig, span: Span) -> Moved:
    """What one forward row of a block moves; AssertionError for a row that is not known here."""
    if (weight := _matrix(block, row.name)) is not None:
        return _product(row, weight)
    if row.name in NORMS:
        kind = config.norm if row.name == "norm" else "rms"
        return norm_moved(row.flops, kind)
    match row.name:
        case "residual":
            return passes(row.flops, 3, 3)
        case "activation":
            gated = config.ffn is not None and config.ffn.gated
            return passes(row.flops // (ACTIVATION_FLOPS + gated), 2 + gated, 3 + 2 * gated)
        case "rope":
            return passes(row.flops // ROPE_FLOPS, 2, 2)
        case "routing":
            return passes(row.flops // ROUTER_FLOPS, 2, 3)
        case "combine":
            return passes(row.flops, 1, 1)
    mixer = config.mixer
    if isinstance(mixer, (AttentionConfig, LatentAttentionConfig)):
        return inner_attention_moved(mixer, span)[row.name]
    return _recurrent(row, mixer, span)


def norm_moved(flops: int, kind: str) -> Moved:
    """Reads x and writes y; backward reads x and dy and writes dx. The gain is too small to count."""
    return passes(flops // NORM_FLOPS[kind], 2, 3)


def inner_attention_moved(mixer: AttentionConfig | LatentAttentionConfig, span: Span) -> dict[str, Moved]:
    """Scores, softmax and values one by one, and as the one operation "attention" that keeps scores on the chip.

    One query of latent attention reads latents: keys of kv_rank + d_rope and values of kv_rank, stored once.
    """
    q, k, v, out = _streams(mixer, span)
    scores = span.pairs * mixer.num_heads
    return {
        "scores": Moved(q + k + scores, 2 * (q + k + scores)),
        "values": Moved(scores + v + out, 2 * (scores + v + out)),
        "softmax": passes(scores, 2, 3),
        "softcap": passes(scores, 2, 3),
        "alibi": passes(scores, 2, 2),
        "attention": Moved(q + k + _apart(mixer, span, v) + out, 2 * (q + k + v + out)),
    }


def _streams(mixer: AttentionConfig | LatentAttentionConfig, span: Span) -> tuple[int, int, int, int]:
    """Numbers in queries, keys, values and output."""
    asked, seen, heads = span.batch * span.queries, span.batch * span.keys, mixer.num_heads
    if isinstance(mixer, AttentionConfig):
        width, kv_width = heads * mixer.d_head, mixer.num_kv_heads * mixer.d_head
        return asked * width, seen * kv_width, seen * kv_width, asked * width
    if absorbs(span):
        rank, d_qk = mixer.kv_rank, mixer.kv_rank + mixer.d_rope
        return asked * heads * d_qk, seen * d_qk, seen * rank, asked * heads * rank
    d_qk, d_value = mixer.d_nope + mixer.d_rope, mixer.d_value
    return asked * heads * d_qk, seen * heads * d_qk, seen * heads * d_value, asked * heads * d_value


def _apart(mixer: AttentionConfig | LatentAttentionConfig, span: Span, values: int) -> int:
    """Values that are not read as keys already: latents are both."""
    return 0 if isinstance(mixer, LatentAttentionConfig) and absorbs(span) else values


def absorbs(span: Span) -> bool:
    """Whether latent attention attends to the latents themselves, as it does for one query with a cache."""
    return span.queries == 1 < span.keys


def _matrix(block: nn.Module, name: str) -> torch.Tensor | None:
    """The parameters that a row of this name multiplies with, (d_out, d_in), or a stack of such."""
    mixer, ffn = getattr(block, "mixer"), getattr(block, "ffn")  # noqa: B009
    if name == "router":
        return ffn.router.weight
    if name.startswith("expert_"):
        return getattr(ffn.experts, name.removeprefix("expert_")).weight
    if name.startswith("shared_"):
        return getattr(ffn.shared, name.removeprefix("shared_")).weight
    owner = next((part for part in (mixer, ffn) if isinstance(getattr(part, name, None), nn.Module)), None)
    weight = getattr(getattr(owner, name, None), "weight", None)
    return weight if weight is not None and weight.ndim > 1 else None


def _product(row: Operation, weight: torch.Tensor) -> Moved:
    d_out, d_in = weight.shape[-2:]
    rows = row.flops // (2 * d_in * d_out)
    return matmul_moved(rows, d_in, d_out, min(weight.shape[:-2].numel(), rows))


def _recurrent(row: Operation, mixer: RecurrentConfig, span: Span) -> Moved:
    """Between tokens and states: a state is read and written once per chunk, or once per token when decoding."""
    match row.name:
        case "decay":
            return passes(row.flops // DECAY_FLOPS, 2, 3)
        case "gated_norm":
            return passes(row.flops // NORM_AND_GATE_FLOPS, 3, 5)
        case "convolution":
            kernel = getattr(mixer, "conv_kernel")  # noqa: B009
            return passes(row.flops // (2 * kernel + 4), 2, 3)
        case "skip":
            return passes(row.flops // 3, 3, 3)
        case "cell":
            return passes(row.flops // CELL_FLOPS, 7, 12)  # four gates and the cell in, cell and output out
        case "tanh":
            return passes(row.flops // TANH_FLOPS, 2, 3)
    assert isinstance(mixer, GatedLinearConfig | Mamba2Config | GatedDeltaConfig), f"no traffic for {row.name!r}"
    return _scan(row, mixer, span)


def _scan(row: Operation, mixer: GatedLinearConfig | Mamba2Config | GatedDeltaConfig, span: Span) -> Moved:
    d_key = mixer.d_state if isinstance(mixer, Mamba2Config) else mixer.d_key
    d_value = mixer.d_head if isinstance(mixer, Mamba2Config) else mixer.d_value
    tokens = span.batch * span.queries
    states = tokens // chunk_length(span.queries) if span.queries > 1 else tokens
    keys, values = tokens * mixer.num_heads * d_key, tokens * mixer.num_heads * d_value
    state = max(states, span.batch) * mixer.num_heads * d_key * d_value
    if row.name == "solve_gradient":  # the solution and its gradient in, the gradient of the system out
        return Moved(0, 2 * (keys + values) + (row.backward or 0) // (2 * (d_key + d_value)))
    once = {
        "scores": row.flops // (2 * d_key) + 2 * keys,
        "overlaps": row.flops // (2 * d_key) + 2 * keys,
        "values": row.flops // (2 * d_value) + 2 * values,
        "solve": 2 * (keys + values),
        "read_keys": state + keys + values,
        "read_state": state + keys + values,
        "write_state": 2 * state + keys + values,
    }[row.name]
    return Moved(once, 2 * once)
