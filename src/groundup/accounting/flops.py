"""Floating-point operations, operation by operation. A multiply-add counts as two.

"6ND" (six FLOPs per parameter and token) is the sum of the matmul rows below for training: two forward, four
backward. What it leaves out is listed beside it: attention's scores and values (which grow with the context),
and the norms, activations and rotations, which cost time but hardly any FLOPs. The embedding is a lookup, not
a matmul, so its parameters are in N and not in the work, unless they are tied to the head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig

Kind = Literal["matmul", "attention", "elementwise"]

# FLOPs per element of one pass, counting an exponential, a root or a division as one.
NORM_FLOPS = {"rms": 4, "layer": 7}
ROPE_FLOPS = 3
SOFTMAX_FLOPS = 5
ACTIVATION_FLOPS = 4


@dataclass(frozen=True)
class Operation:
    """One line of the ledger: forward FLOPs of an operation, over all layers in `layers`."""

    name: str
    kind: Kind
    flops: int


def ledger(config: ModelConfig, seq: int, batch: int = 1, causal: bool = True) -> list[Operation]:
    """The forward pass, one row per operation and layer.

    `causal=True` counts the keys that each query may see (the useful work, which MFU divides by);
    `causal=False` the whole square that an implementation without block skipping multiplies
    (what torch's FlopCounterMode counts).
    """
    rows = [
        row
        for layer in range(config.num_layers)
        for row in _block(config.blocks[layer % len(config.blocks)], config.d_model, seq, batch, causal)
    ]
    tokens = batch * seq
    if config.final_norm:
        rows.append(
            Operation("final_norm", "elementwise", NORM_FLOPS[config.blocks[-1].norm] * tokens * config.d_model)
        )
    rows.append(Operation("head", "matmul", 2 * tokens * config.d_model * config.vocab_size))
    return rows


def _block(block: BlockConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Operation]:
    match block.mixer:
        case AttentionConfig():
            yield from _attention(block.mixer, d_model, seq, batch, causal)
    match block.ffn:
        case MLPConfig():
            yield from _mlp(block.ffn, d_model, batch * seq)
    norms = 4 if block.placement == "sandwich" else 2
    yield Operation("norm", "elementwise", norms * NORM_FLOPS[block.norm] * batch * seq * d_model)


def _attention(mixer: AttentionConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Operation]:
    tokens, width, kv_width = batch * seq, mixer.num_heads * mixer.d_head, mixer.num_kv_heads * mixer.d_head
    yield Operation("wq", "matmul", 2 * tokens * d_model * width)
    yield Operation("wk", "matmul", 2 * tokens * d_model * kv_width)
    yield Operation("wv", "matmul", 2 * tokens * d_model * kv_width)
    pairs = batch * (visible_pairs(seq, mixer.window) if causal else seq * seq)
    yield Operation("scores", "attention", 2 * pairs * width)
    yield Operation("values", "attention", 2 * pairs * width)
    yield Operation("softmax", "elementwise", SOFTMAX_FLOPS * pairs * mixer.num_heads)
    if mixer.rope is not None:
        yield Operation("rope", "elementwise", ROPE_FLOPS * tokens * (width + kv_width))
    yield Operation("wo", "matmul", 2 * tokens * width * d_model)


def _mlp(ffn: MLPConfig, d_model: int, tokens: int) -> Iterator[Operation]:
    for name in ("gate", "up", "down") if ffn.gated else ("up", "down"):
        yield Operation(name, "matmul", 2 * tokens * d_model * ffn.d_ff)
    yield Operation("activation", "elementwise", ACTIVATION_FLOPS * tokens * ffn.d_ff)


def visible_pairs(seq: int, window: int | None = None) -> int:
    """Query-key pairs under the causal mask: seq (seq + 1) / 2, or fewer with a window.

    >>> visible_pairs(4), visible_pairs(4, window=2)
    (10, 7)
    """
    if window is None or window >= seq:
        return seq * (seq + 1) // 2
    return window * (window + 1) // 2 + (seq - window) * window


def forward_flops(config: ModelConfig, seq: int, batch: int = 1, causal: bool = True) -> int:
    """Matmul and attention FLOPs of one forward pass: what a tensor core could do, so what MFU counts."""
    return sum(row.flops for row in ledger(config, seq, batch, causal) if row.kind != "elementwise")


def training_flops_per_token(config: ModelConfig, context_length: int, recomputed_layers: int = 0) -> float:
    """Forward plus backward (twice the forward) FLOPs for one token of a full context, causal count.

    Activation checkpointing repeats the forward of `recomputed_layers` blocks; that is work done but not
    useful work, so it belongs in HFU and not in MFU: leave it at 0 for MFU.
    """
    forward = forward_flops(config, context_length)
    head = 2 * context_length * config.d_model * config.vocab_size
    repeated = (forward - head) * recomputed_layers / config.num_layers
    return (3 * forward + repeated) / context_length
