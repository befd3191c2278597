"""Floating-point operations, operation by operation. A multiply-add counts as two.

"6ND" (six FLOPs per parameter and token) is the sum of the matmul rows below for training: two forward, four
backward. What it leaves out is listed beside it: attention's scores and values (which grow with the context),
and the norms, activations and rotations, which cost time but hardly any FLOPs. The embedding is a lookup, not
a matmul, so its parameters are in N and not in the work, unless they are tied to the head. `beside_six_nd`
puts a number on each of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from groundup.accounting.experts import expert_elementwise, expert_matmuls
from groundup.accounting.optimizers import OptimizerName, update_rows
from groundup.accounting.params import check_one_stack, meta_model
from groundup.accounting.recurrence import recurrent_rows
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    GatedDeltaConfig,
    GatedLinearConfig,
    LatentAttentionConfig,
    LSTMConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    NeuralNgramConfig,
    ReinforceRouter,
)

Kind = Literal["matmul", "attention", "elementwise"]
Phase = Literal["forward", "backward", "recompute", "optimizer"]

# FLOPs per element of one pass, counting an exponential, a root or a division as one.
NORM_FLOPS = {"rms": 4, "layer": 7}
ROPE_FLOPS = 3
SOFTMAX_FLOPS = 5
ACTIVATION_FLOPS = 4
SOFTCAP_FLOPS = 3


@dataclass(frozen=True)
class Operation:
    """One line of the ledger: the FLOPs of one operation in one layer (None: outside of the blocks).

    `backward` are those of its backward pass, where they are not twice as many.
    """

    name: str
    kind: Kind
    flops: int
    backward: int | None = None
    layer: int | None = None
    phase: Phase = "forward"

    def reversed(self) -> "Operation":
        """The row of its backward pass."""
        return replace(self, flops=2 * self.flops if self.backward is None else self.backward, phase="backward")


def ledger(config: ModelConfig, seq: int, batch: int = 1, causal: bool = True) -> list[Operation]:
    """The forward pass, one row per operation and layer.

    `causal=True` counts the keys that each query may see (the useful work, which MFU divides by; for a layer that
    looks ahead all of them); `causal=False` the whole square that an implementation without block skipping
    multiplies (what torch's FlopCounterMode counts).
    """
    check_one_stack(config)
    rows = [
        replace(row, layer=layer)
        for layer in range(config.num_layers)
        for row in _block(config.block(layer), config.d_model, seq, batch, causal)
    ]
    tokens = batch * seq
    if config.final_norm:
        norm = NORM_FLOPS[config.block(config.num_layers - 1).norm]
        rows.append(Operation("final_norm", "elementwise", norm * tokens * config.d_model))
    rows.append(Operation("head", "matmul", 2 * tokens * config.d_model * config.vocab_size))
    return rows


def further_tokens(config: ModelConfig, seq: int, batch: int = 1, causal: bool = True) -> list[Operation]:
    """The forward pass of the multi-token modules, which training runs beside the model; none without modules.

    Depth k reads seq - k tokens: after those the token that it needs is not known (see `model.multi_token`).
    """
    depth = min(config.multi_token.depth, seq - 1) if config.multi_token else 0
    return [row for k in range(1, 1 + depth) for row in further_token(config, seq - k, batch, causal)]


def further_token(config: ModelConfig, known: int, batch: int, causal: bool = True) -> Iterator[Operation]:
    """One multi-token module on the tokens that it knows."""
    block, elements = config.block(config.num_layers - 1), batch * known * config.d_model
    yield from _block(block, config.d_model, known, batch, causal)
    yield Operation("further_combine", "matmul", 2 * elements * 2 * config.d_model)
    yield Operation("further_norms", "elementwise", 3 * NORM_FLOPS[block.norm] * elements)
    yield Operation("further_head", "matmul", 2 * elements * config.vocab_size)


def sampled_choices(config: ModelConfig, seq: int, batch: int = 1, causal: bool = True) -> list[Operation]:
    """What a `ReinforceRouter` asks for in training: each token's loss once more, and a greedy pass as its baseline."""
    ffns = [config.block(layer).ffn for layer in range(config.num_layers)]
    routers = {ffn.router for ffn in ffns if isinstance(ffn, MoEConfig) and isinstance(ffn.router, ReinforceRouter)}
    if not routers:
        return []
    passes = ledger(config, seq, batch, causal)
    head = [row for row in passes if row.name == "head"]
    greedy = [router for router in routers if router.baseline == "greedy"]
    # Sums of later costs, each by a product with a matrix of discounts.
    sums = Operation("sums", "matmul", 2 * batch * seq * seq * (len(routers) + len(greedy)))
    rows = [*head, *(passes if greedy else []), sums]
    return [replace(row, name=f"choices_{row.name}", layer=None, backward=0) for row in rows]


def _block(block: BlockConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Operation]:
    if block.cross is not None:
        raise ValueError("ledger: a block attends to a source (cross), whose length this count does not know")
    match block.mixer:
        case AttentionConfig():
            yield from _attention(block.mixer, d_model, seq, batch, causal)
        case LatentAttentionConfig():
            yield from _latent_attention(block.mixer, d_model, seq, batch, causal)
        case GatedLinearConfig() | Mamba2Config() | GatedDeltaConfig() | LSTMConfig() | NeuralNgramConfig():
            yield from (Operation(*row) for row in recurrent_rows(block.mixer, d_model, seq, batch, causal))
    match block.ffn:
        case MLPConfig():
            yield from _mlp(block.ffn, d_model, batch * seq)
        case MoEConfig():
            yield from _experts(block.ffn, d_model, batch * seq)
    elements = batch * seq * d_model
    yield Operation("norm", "elementwise", len(block.norms) * NORM_FLOPS[block.norm] * elements)
    yield Operation("residual", "elementwise", (1 if block.ffn is None else 2) * elements)


def _attention(mixer: AttentionConfig, d_model: int, seq: int, batch: int, causal: bool) -> Iterator[Operation]:
    tokens, width, kv_width = batch * seq, mixer.num_heads * mixer.d_head, mixer.num_kv_heads * mixer.d_head
    yield Operation("wq", "matmul", 2 * tokens * d_model * width)
    yield Operation("wk", "matmul", 2 * tokens * d_model * kv_width)
    yield Operation("wv", "matmul", 2 * tokens * d_model * kv_width)
    seen = visible_pairs(seq, mixer.window, mixer.sink_tokens, mixer.causal) if causal else seq * seq
    pairs = batch * seen
    if mixer.qk_norm:
        yield Operation("qk_norm", "elementwise", NORM_FLOPS["rms"] * tokens * (width + kv_width))
    yield Operation("scores", "attention", 2 * pairs * width)
    if mixer.softcap is not None:
        yield Operation("softcap", "elementwise", SOFTCAP_FLOPS * pairs * mixer.num_heads)
    yield Operation("values", "attention", 2 * pairs * width)
    yield Operation("softmax", "elementwise", SOFTMAX_FLOPS * pairs * mixer.num_heads)
    if mixer.alibi:
        yield Operation("alibi", "elementwise", 2 * pairs * mixer.num_heads)
    if mixer.rope is not None:
        yield Operation("rope", "elementwise", int(ROPE_FLOPS * mixer.rope.fraction * tokens * (width + kv_width)))
    yield Operation("wo", "matmul", 2 * tokens * width * d_model)


def _latent_attention(
    mixer: LatentAttentionConfig, d_model: int, seq: int, batch: int, causal: bool
) -> Iterator[Operation]:
    """The expanded form, which training and prefill run."""
    tokens, heads, d_qk = batch * seq, mixer.num_heads, mixer.d_nope + mixer.d_rope
    if mixer.q_rank is None:
        yield Operation("wq", "matmul", 2 * tokens * d_model * heads * d_qk)
    else:
        yield Operation("wq_down", "matmul", 2 * tokens * d_model * mixer.q_rank)
        yield Operation("wq_up", "matmul", 2 * tokens * mixer.q_rank * heads * d_qk)
    yield Operation("wkv_down", "matmul", 2 * tokens * d_model * mixer.kv_rank)
    yield Operation("wk_rope", "matmul", 2 * tokens * d_model * mixer.d_rope)
    yield Operation("wkv_up", "matmul", 2 * tokens * mixer.kv_rank * heads * (mixer.d_nope + mixer.d_value))
    yield Operation("latent_norm", "elementwise", NORM_FLOPS["rms"] * tokens * (mixer.kv_rank + (mixer.q_rank or 0)))
    yield Operation("rope", "elementwise", ROPE_FLOPS * tokens * (heads + 1) * mixer.d_rope)
    pairs = batch * (visible_pairs(seq, mixer.window) if causal else seq * seq)
    yield Operation("scores", "attention", 2 * pairs * heads * d_qk)
    yield Operation("values", "attention", 2 * pairs * heads * mixer.d_value)
    yield Operation("softmax", "elementwise", SOFTMAX_FLOPS * pairs * heads)
    yield Operation("wo", "matmul", 2 * tokens * heads * mixer.d_value * d_model)


def _mlp(ffn: MLPConfig, d_model: int, tokens: int) -> Iterator[Operation]:
    for name in ("gate", "up", "down") if ffn.gated else ("up", "down"):
        yield Operation(name, "matmul", 2 * tokens * d_model * ffn.d_ff)
    yield Operation("activation", "elementwise", (ACTIVATION_FLOPS + ffn.gated) * tokens * ffn.d_ff)


def _experts(ffn: MoEConfig, d_model: int, tokens: int) -> Iterator[Operation]:
    for name, flops in expert_matmuls(ffn, d_model, tokens).items():
        yield Operation(name, "matmul", flops)
    for name, flops in expert_elementwise(ffn, d_model, tokens, ACTIVATION_FLOPS).items():
        yield Operation(name, "elementwise", flops)


def visible_pairs(seq: int, window: int | None = None, sink_tokens: int = 0, causal: bool = True) -> int:
    """Query-key pairs under the causal mask: seq (seq + 1) / 2, or fewer with a window, whose sinks stay visible.

    With `causal=False` the pairs of either side, the diagonal once: seq^2 without a window.

    >>> visible_pairs(4), visible_pairs(4, window=2), visible_pairs(4, window=2, sink_tokens=1)
    (10, 7, 9)
    """
    if not causal:
        assert sink_tokens == 0, "no bidirectional layer has sink tokens"
        return 2 * visible_pairs(seq, window) - seq
    if window is None or window >= seq:
        return seq * (seq + 1) // 2
    in_window = window * (window + 1) // 2 + (seq - window) * window
    # Query i, from 0, has left i + 1 - window tokens behind its window; up to sink_tokens of them are seen.
    behind = seq - window
    partly = min(behind, sink_tokens)
    return in_window + partly * (partly + 1) // 2 + (behind - partly) * sink_tokens


def forward_flops(config: ModelConfig, seq: int, batch: int = 1, causal: bool = True) -> int:
    """Matmul and attention FLOPs of one forward pass: what a tensor core could do, so what MFU counts."""
    return sum(row.flops for row in ledger(config, seq, batch, causal) if row.kind != "elementwise")


def training_flops_per_token(config: ModelConfig, context_length: int, recomputed_layers: int = 0) -> float:
    """Forward plus backward (twice the forward) FLOPs for one token of a full context, causal count.

    Activation checkpointing repeats the forward of the first `recomputed_layers` blocks; that is work done but
    not useful work, so it belongs in HFU and not in MFU: leave it at 0 for MFU.
    """
    rows = training_ledger(config, context_length, recomputed_layers=recomputed_layers, optimizer=None)
    return sum(row.flops for row in rows if row.kind != "elementwise") / context_length


def training_ledger(
    config: ModelConfig,
    seq: int,
    batch: int = 1,
    causal: bool = True,
    *,
    recomputed_layers: int = 0,
    optimizer: OptimizerName | None = "adamw",
) -> list[Operation]:
    """One optimizer step on `batch` rows: the forward rows, the backward ones, what is recomputed, the update.

    Multi-token modules are among them. A matmul has two in the backward pass, for the gradient of either factor, and
    attention's products too: exact. So are recurrences, where some factors need no gradient. Elementwise operations
    are counted twice there as a convention. The first `recomputed_layers` blocks run forward once more, up to the
    last thing that their backward pass reads: without a norm after it, what the `down` product makes is not needed
    again.
    """
    check_one_stack(config)
    if not 0 <= recomputed_layers <= config.num_layers:
        raise ValueError(f"recomputed_layers={recomputed_layers}; expected 0 to {config.num_layers}")
    parts = (ledger, further_tokens, sampled_choices)
    forward = [row for part in parts for row in part(config, seq, batch, causal)]
    backward = [row.reversed() for row in forward]
    again = [
        replace(row, phase="recompute")
        for row in forward
        if row.layer is not None and row.layer < recomputed_layers and _is_read_again(row, config.block(row.layer))
    ]
    update = [] if optimizer is None else optimizer_ledger(config, optimizer)
    return [*forward, *backward, *again, *update]


def _is_read_again(row: Operation, block: BlockConfig) -> bool:
    ends = ("direct",) if getattr(block.mixer, "direct", False) else ("wo", "out_proj")
    branch, last = ("mixer", ends) if block.ffn is None else ("ffn", ("down", "shared_down"))
    return row.name not in last or bool({f"{branch}_post_norm", f"{branch}_out_norm"} & set(block.norms))


def optimizer_ledger(config: ModelConfig, optimizer: OptimizerName = "adamw") -> list[Operation]:
    """The FLOPs of one update by any optimizer of `optim` (see `accounting.optimizers`)."""
    rows = update_rows(meta_model(config), optimizer)
    return [Operation(row.name, row.kind, row.flops, phase="optimizer") for row in rows]


def beside_six_nd(
    config: ModelConfig,
    seq: int,
    batch: int = 1,
    *,
    recomputed_layers: int = 0,
    optimizer: OptimizerName | None = "adamw",
) -> dict[str, int]:
    """Where "6ND" is wrong for one step, term by term. All terms together are the sum of `training_ledger`.

    N counts every parameter. Tables, gains and biases are in N but no matmul reads them, hence the negative term;
    everything else is work that N does not see.
    """
    rows = training_ledger(config, seq, batch, recomputed_layers=recomputed_layers, optimizer=optimizer)
    passes = [row for row in rows if row.phase in ("forward", "backward")]
    six_nd = 6 * sum(p.numel() for p in meta_model(config).parameters()) * batch * seq
    by_kind = {kind: sum(row.flops for row in passes if row.kind == kind) for kind in ("matmul", "attention")}
    return {
        "6ND": six_nd,
        "parameters outside of matmuls": by_kind["matmul"] - six_nd,
        "attention": by_kind["attention"],
        "elementwise": sum(row.flops for row in passes if row.kind == "elementwise"),
        "recomputation": sum(row.flops for row in rows if row.phase == "recompute"),
        "optimizer": sum(row.flops for row in rows if row.phase == "optimizer"),
    }
