"""The roofline: FLOPs and bytes of every operation of a step, and which of the two bounds it on a device.

An operation of F FLOPs and B bytes takes at least max(F / peak, B / bandwidth) seconds. Its arithmetic intensity F / B
decides which: above the device's ridge point, peak / bandwidth, it is bound by arithmetic, below it by memory.
Williams et al. 2009, "Roofline: an insightful visual performance model for multicore architectures".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from groundup.accounting.flops import (
    SOFTMAX_FLOPS,
    Operation,
    further_token,
    ledger,
    visible_pairs,
)
from groundup.accounting.hardware import Machine
from groundup.accounting.optimizers import OptimizerName, update_rows
from groundup.accounting.params import check_one_stack, meta_model
from groundup.accounting.traffic import (
    FP32_BYTES,
    INNER_ATTENTION,
    Moved,
    Span,
    absorbs,
    inner_attention_moved,
    matmul_moved,
    norm_moved,
    row_moved,
)
from groundup.config import nearest
from groundup.model import AttentionConfig, BlockConfig, LatentAttentionConfig, ModelConfig, Transformer

StepPhase = Literal["train", "prefill", "decode"]
PHASES: tuple[StepPhase, ...] = ("train", "prefill", "decode")
Bound = Literal["compute", "memory"]


@dataclass(frozen=True)
class Ceiling:
    """What a device can do at best: FLOP/s of matrix products, and bytes per second to and from memory."""

    name: str
    peak_flops: float
    bandwidth: float

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which arithmetic is the bound."""
        return self.peak_flops / self.bandwidth


def ceiling(machine: Machine) -> Ceiling:
    """The measured ceiling of a probed machine, in its chosen precision."""
    return Ceiling(machine.name, machine.peak_flops, machine.bandwidth)


@dataclass(frozen=True)
class Work(Operation):
    """A row of the ledger with the bytes that it moves (see `accounting.traffic` for what is counted)."""

    bytes_moved: int = 0

    @property
    def intensity(self) -> float:
        """FLOPs per byte; 0 for what only moves bytes."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0

    def bound(self, device: Ceiling) -> Bound:
        """What limits this operation on the device."""
        return "compute" if self.intensity > device.ridge else "memory"

    def least_seconds(self, device: Ceiling) -> float:
        """max(FLOPs / peak, bytes / bandwidth). From caches, which are faster than memory, it may take less."""
        return max(self.flops / device.peak_flops, self.bytes_moved / device.bandwidth)


def step_work(
    config: ModelConfig,
    phase: str,
    *,
    batch: int,
    seq: int,
    dtype: torch.dtype = torch.float32,
    optimizer: OptimizerName | None = "adamw",
    fused_attention: bool = True,
) -> list[Work]:
    """Every operation of one step, with its FLOPs (those of the ledger) and bytes.

    train: forward, backward and update of `batch` rows of `seq` tokens. prefill: `batch` prompts of `seq` tokens, whose
    last tokens alone reach the head. decode: one token for each of `batch` rows that hold `seq` tokens, it included.
    Master weights are float32; when `dtype` is another, casting them is a row of its own. `fused_attention=False`
    writes scores to memory.

    The passes that a `ReinforceRouter` adds are left out. Beside the ledger's rows there are some which hardly
    compute but move bytes: the embedding's lookup, casts, and in training the loss between the logits and their
    gradient. Multi-token modules are trained, and not used else.

    ValueError for an unknown phase, and for decoding with a model that looks ahead.
    """
    if phase not in PHASES:
        raise ValueError(f"phase {phase!r} is unknown{nearest(phase, PHASES)}")
    if batch < 1 or seq < 1:
        raise ValueError(f"batch={batch}, seq={seq}; expected at least 1 of each")
    check_one_stack(config)
    if phase == "decode" and not config.causal:
        raise ValueError("step_work: a layer has causal=False and looks ahead, so the model does not decode; use train")
    queries = 1 if phase == "decode" else seq
    model = meta_model(config)
    forward = list(_blocks(config, model, batch, queries, seq, fused_attention))
    forward += _ends(config, model, batch, queries, phase)
    forward += _further(config, model, batch, seq, fused_attention) if phase == "train" else ()
    rows = [_work(row, moved.forward * dtype.itemsize) for row, moved in forward if moved.forward]
    depths = _depths(model) if phase == "train" else []
    rows += _casts(model, dtype, "forward", depths)
    if phase == "train":
        rows += [_work(row.reversed(), moved.backward * dtype.itemsize) for row, moved in forward if moved.backward]
        rows += _casts(model, dtype, "backward", depths)
        rows += [] if optimizer is None else _update(model, optimizer)
    return rows


def _work(row: Operation, moved: int) -> Work:
    return Work(row.name, row.kind, row.flops, row.backward, row.layer, row.phase, moved)


def _blocks(
    config: ModelConfig, model: Transformer, batch: int, queries: int, keys: int, fused: bool
) -> Iterator[tuple[Operation, Moved]]:
    rows = [row for row in ledger(config, queries, batch) if row.layer is not None and (row.flops or row.backward)]
    for layer, block in enumerate(model.blocks):
        kind = config.block(layer)
        span = _span(kind, batch, queries, keys)
        yield from _block_moved(block, kind, [row for row in rows if row.layer == layer], span, fused)


def _block_moved(
    block: nn.Module, kind: BlockConfig, rows: list[Operation], span: Span, fused: bool
) -> Iterator[tuple[Operation, Moved]]:
    for row in _seen(kind, rows, span, fused):
        fused_row = row.name == "attention"
        yield row, _attention_moved(kind, span) if fused_row else row_moved(row, block, kind, span)


def _span(block: BlockConfig, batch: int, queries: int, keys: int) -> Span:
    """The keys that the queries, which are the last tokens, look at."""
    window, sinks = getattr(block.mixer, "window", None), getattr(block.mixer, "sink_tokens", 0)
    pairs = visible_pairs(keys, window, sinks, getattr(block.mixer, "causal", True))
    if queries < keys:
        pairs -= visible_pairs(keys - queries, window, sinks)
    read = keys if window is None else min(keys, window + queries - 1 + sinks)
    return Span(batch, queries, read, batch * pairs)


def _seen(block: BlockConfig, rows: list[Operation], span: Span, fused: bool) -> Iterator[Operation]:
    """The rows of a block with attention over all that the cache holds, in one row where the kernel is fused."""
    if not isinstance(block.mixer, (AttentionConfig, LatentAttentionConfig)):
        yield from rows
        return
    flops = _attention_flops(block.mixer, rows, span)
    if fused and flops:
        yield Operation("attention", "attention", sum(flops.values()), layer=rows[0].layer)
    yield from (row for row in rows if row.name not in flops)
    if not fused:
        yield from (replace(row, flops=flops[row.name]) for row in rows if row.name in flops)


def _attention_flops(
    mixer: AttentionConfig | LatentAttentionConfig, rows: list[Operation], span: Span
) -> dict[str, int]:
    """FLOPs of scores, softmax and values for the span's pairs; the ledger counts a sequence without a past."""
    inner = {row.name: row.flops for row in rows if row.name in INNER_ATTENTION}
    if span.queries > 1 or span.keys == 1:
        return inner
    grown = {name: n // span.batch * span.pairs for name, n in inner.items()}
    if isinstance(mixer, LatentAttentionConfig) and absorbs(span):
        wide = 2 * span.pairs * mixer.num_heads
        grown |= {"scores": wide * (mixer.kv_rank + mixer.d_rope), "values": wide * mixer.kv_rank}
    return grown


def _attention_moved(block: BlockConfig, span: Span) -> Moved:
    assert isinstance(block.mixer, (AttentionConfig, LatentAttentionConfig))
    return inner_attention_moved(block.mixer, span)["attention"]


def _ends(
    config: ModelConfig, model: Transformer, batch: int, queries: int, phase: str
) -> Iterator[tuple[Operation, Moved]]:
    """Embedding, final norm, head and loss."""
    tokens, d_model, vocab = batch * queries, config.d_model, config.vocab_size
    scored = batch if phase == "prefill" else tokens
    # The gradient of a table is a table: zeroed, then rows are read, added to and written.
    yield Operation("embedding", "elementwise", 0), Moved(2 * tokens * d_model, vocab * d_model + 3 * tokens * d_model)
    for row in ledger(config, queries, batch):
        if row.name == "final_norm":
            yield row, norm_moved(row.flops, config.block(config.num_layers - 1).norm)
    head = Operation("head", "matmul", 2 * scored * d_model * vocab)
    yield head, matmul_moved(scored, d_model, vocab)
    if phase == "train":  # reads logits and writes their gradient, which is then at hand for the backward pass
        yield Operation("loss", "elementwise", SOFTMAX_FLOPS * scored * vocab), Moved(2 * scored * vocab, 0)


def _further(
    config: ModelConfig, model: Transformer, batch: int, seq: int, fused: bool
) -> Iterator[tuple[Operation, Moved]]:
    """The multi-token modules, each with its own lookup, head and loss."""
    kind, d_model, vocab = config.block(config.num_layers - 1), config.d_model, config.vocab_size
    for k, depth in enumerate(_depths(model)[: seq - 1], 1):
        known, tokens = seq - k, batch * (seq - k)
        rows = [row for row in further_token(config, known, batch) if row.flops or row.backward]
        own = {row.name: row for row in rows if row.name.startswith("further_")}
        inner = [row for row in rows if row.name not in own]
        yield from _block_moved(depth.block, kind, inner, _span(kind, batch, known, known), fused)  # type: ignore[arg-type]
        yield Operation("embedding", "elementwise", 0), Moved(2 * tokens * d_model, 3 * tokens * d_model)
        yield own["further_combine"], matmul_moved(tokens, 2 * d_model, d_model)
        yield own["further_norms"], norm_moved(own["further_norms"].flops, kind.norm)
        yield own["further_head"], matmul_moved(tokens, d_model, vocab)
        yield Operation("loss", "elementwise", SOFTMAX_FLOPS * tokens * vocab), Moved(2 * tokens * vocab, 0)


def _depths(model: Transformer) -> list[nn.Module]:
    return [] if model.multi_token is None else list(model.multi_token.depths)


def _casts(
    model: Transformer, dtype: torch.dtype, phase: Literal["forward", "backward"], depths: list[nn.Module]
) -> Iterator[Work]:
    """Matrices from float32 to `dtype` on the way forward, their gradients back on the way backward."""
    if dtype == torch.float32:
        return
    blocks = [*model.blocks, *(depth.get_submodule("block") for depth in depths)]
    mixers = [p for block in blocks for p in block.get_submodule("mixer").parameters()]
    mixers += [p for depth in depths for p in depth.get_submodule("combine").parameters()]
    ffns = [p for block in blocks for name, p in block.named_parameters() if name.startswith("ffn.")]
    for name, owned in {"cast_mixer": mixers, "cast_ffn": ffns, "cast_head": [model.head_weight]}.items():
        if count := sum(p.numel() for p in owned if p.ndim > 1):
            yield Work(name, "elementwise", 0, phase=phase, bytes_moved=(FP32_BYTES + dtype.itemsize) * count)


def _update(model: Transformer, optimizer: OptimizerName) -> Iterator[Work]:
    """AdamW reads parameter, gradient and two moments and writes all but the gradient: 28 bytes per parameter."""
    for row in update_rows(model, optimizer):
        yield Work(row.name, row.kind, row.flops, phase="optimizer", bytes_moved=row.bytes_moved)


def attention_intensity(q_seq: int, k_seq: int, group: int = 1) -> float:
    """FLOPs per byte of fused attention in a 16-bit type without a mask: S T / (S + T / g) for g heads per kv head.

    Decoding is S = 1: below g, however long the context and large the batch, since every row has its own keys.

    >>> attention_intensity(1, 999), attention_intensity(1000, 1000)
    (0.999, 500.0)
    """
    return q_seq * k_seq / (q_seq + k_seq / group)


def decode_intensity(context: int, d_model: int, batch: int, num_heads: int, num_kv_heads: int) -> float:
    """FLOPs per number moved when decoding, up to a constant: 1 / (1/d + n g / (d h) + 1/b), for g kv heads.

    Shazeer 2019, sections 2.4.1 and 3.1 (arXiv:1911.02150): g = h gives n/d + 1/b (where 1/d is too small to be named),
    g = 1 gives 1/d + n/(d h) + 1/b.

    >>> round(decode_intensity(1024, 1024, 64, 16, 16), 2), round(decode_intensity(1024, 1024, 64, 16, 1), 1)
    (0.98, 12.7)
    """
    return 1 / (1 / d_model + context * num_kv_heads / (d_model * num_heads) + 1 / batch)
