"""From a model to the operations of its decode step, or to the reason why it has none.

A block is x <- out(x + post(f(pre(x)))) for attention and for the feed-forward layer, and each slot of a norm becomes
part of an operation or one of its own:

    pre     in the `round` before f's first product
    post    f's last product goes to a buffer, and `norm` adds its norm to x; without it the product adds to x itself
    out     `norm` of x, in place
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from groundup.inference.decode.operations import (
    ADD,
    ATTEND,
    EMBED,
    GATHER,
    NO_WINDOW,
    NORM,
    OPERATION,
    PRODUCT,
    REMEMBER,
    ROUND,
    WRITE,
)  # fmt: skip
from groundup.inference.decode.pack import INPUTS, OUTPUTS, Arena, Packed, pack
from groundup.model import (
    Attention,
    Block,
    LearnedPositions,
    SinusoidalPositions,
    Transformer,
)
from groundup.model.feedforward import MLP
from groundup.model.linear import Linear
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.model.position import Rope, sinusoids

KEYS = 16  # that attention takes at a time, all of one page
NORM_KINDS: dict[type, int] = {nn.Identity: 0, RMSNorm: 1, LayerNorm: 2}
ACTIVATIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "relu2")
"""In the order of the numbers that `rows.activate` goes by."""
HEAD_KINDS = {"int4": "int8"}
"""The head, whose errors go straight to the logits, is kept finer."""


@dataclass(frozen=True)
class Rows:
    """A buffer of float32 rows."""

    tensor: Tensor

    def as_source(self) -> dict[str, int]:
        return {"source": self.tensor.data_ptr(), "source_width": self.tensor.shape[1]}

    def as_target(self) -> dict[str, int]:
        return {"target": self.tensor.data_ptr(), "target_width": self.tensor.shape[1]}


class Program:
    """The operations of a model in order, with all that they point to.

    `rows` is the most rows of a step, `context` the most positions. `weight_bytes` are read once per step.
    """

    def __init__(
        self,
        model: Transformer,
        streams: Sequence[Sequence[Tensor]],
        page_size: int,
        kind: str,
        rows: int,
        context: int,
    ) -> None:
        self.page_size, self.kind, self.rows, self.context = page_size, kind, rows, context
        self.weight_bytes = 0
        self._alive: list[Tensor] = []
        self._arena = Arena()
        self._operations: list[np.ndarray] = []
        self._tables: dict[tuple[Rope, int], tuple[int, int, int]] = {}
        self._inputs, self._most_heads = INPUTS, 1
        self.x, self.wanted = self._rows(model.config.d_model), self._rows(model.config.d_model)
        self._embed(model)
        for layer, block in enumerate(model.blocks.children()):
            assert isinstance(block, Block)
            self._block(block, model.config.d_model, streams[layer])
        self._head(model)
        self.operations = np.array(self._operations, OPERATION)
        self._head_target = self.operations["target"][-1:].reshape(())
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Tell each operation which product comes next."""
        products = np.flatnonzero(self.operations["kind"] == PRODUCT)
        following = np.searchsorted(products, np.arange(len(self.operations)), side="right")
        self.operations["next_product"] = products[following.clip(max=len(products) - 1)]
        self.operations["fetch"] = self.operations["fetch"].max()

    @property
    def values_bytes(self) -> int:
        """Of the longest row that a product reads, in the widest format."""
        return 4 * self._inputs

    @property
    def record_bytes(self) -> int:
        """Of a rounded row: its values, room for its scale, the sums of its groups; whole cache lines."""
        return -(-(self.values_bytes + 4 * OUTPUTS + self.values_bytes // INPUTS) // 64) * 64

    @property
    def work_size(self) -> int:
        """Numbers of float32 that a thread needs for itself: a row, or the scores of its heads."""
        return max(self._inputs, self._most_heads * -(-self.context // KEYS) * KEYS)

    def _rows(self, width: int) -> Rows:
        return Rows(self._kept(torch.zeros(self.rows, width)))

    def _kept(self, tensor: Tensor) -> Tensor:
        self._alive.append(tensor)
        return tensor

    def _address(self, tensor: Tensor | None) -> int:
        """Of a float32 copy, or of the tensor itself; 0 for None."""
        return 0 if tensor is None else self._kept(tensor.detach().float().contiguous()).data_ptr()

    def _add(self, kind: int, **fields: Any) -> None:
        operation = np.zeros((), OPERATION)
        for name, value in {"kind": kind, "page_size": self.page_size, **fields}.items():
            operation[name] = value
        self._operations.append(operation)

    def _embed(self, model: Transformer) -> None:
        config, positions = model.config, None
        if isinstance(config.positions, LearnedPositions):
            assert model.positions is not None
            positions = model.positions.weight
            self.context = min(self.context, config.positions.max_length)
        elif isinstance(config.positions, SinusoidalPositions):
            positions = sinusoids(torch.arange(self.context), config.d_model)
        self._add(
            EMBED, width=config.d_model, table=self._address(model.embed.weight), **self.x.as_target(),
            scale=config.d_model**0.5 if config.scale_embeddings else 1.0, position_table=self._address(positions),
        )  # fmt: skip

    def _head(self, model: Transformer) -> None:
        width, vocab = model.config.d_model, model.config.vocab_size
        self._add(GATHER, wanted=1, width=width, **self.x.as_source(), **self.wanted.as_target())
        kind = HEAD_KINDS.get(self.kind, self.kind)
        matrix = self._packed(model.head_weight, kind=kind)
        self._round(self.wanted, width, matrix, model.final_norm, wanted=1)
        self._add(PRODUCT, wanted=1, target_width=vocab, **self._fields(matrix))

    def set_logits(self, address: int) -> None:
        """Where the head writes: float32 (wanted, vocab), of which the caller takes care."""
        self._head_target[()] = address

    def _packed(self, weight: Tensor, gate: Tensor | None = None, kind: str | None = None) -> Packed:
        matrix = pack(weight, kind or self.kind, gate)
        values, scales = self._kept(self._arena.keep(matrix.values)), self._kept(self._arena.keep(matrix.scales))
        matrix = replace(matrix, values=values, scales=scales)
        self.weight_bytes += matrix.nbytes
        self._inputs = max(self._inputs, matrix.groups * INPUTS)
        return matrix

    def _fields(self, matrix: Packed) -> dict[str, int]:
        return {
            "format": matrix.format, "groups": matrix.groups, "outputs": matrix.outputs,
            "weights": matrix.values.data_ptr(), "scales": matrix.scales.data_ptr(),
            "block_bytes": matrix.block_bytes, "scale_bytes": matrix.scale_bytes,
        }  # fmt: skip

    def _norm_fields(self, norm: nn.Module) -> dict[str, Any]:
        if isinstance(norm, nn.Identity):
            return {}
        assert isinstance(norm, RMSNorm | LayerNorm)
        gain, bias = self._address(norm.weight), self._address(getattr(norm, "bias", None))
        return {"norm_kind": NORM_KINDS[type(norm)], "gain": gain, "norm_bias": bias, "eps": norm.eps}

    def _round(self, source: Rows, width: int, matrix: Packed, norm: nn.Module, wanted: int = 0) -> None:
        self._add(
            ROUND, wanted=wanted, width=width, format=matrix.format, groups=matrix.groups,
            **source.as_source(), **self._norm_fields(norm),
        )  # fmt: skip

    def _block(self, block: Block, d_model: int, streams: Sequence[Tensor]) -> None:
        attention, mlp = block.mixer, block.ffn
        assert isinstance(attention, Attention)
        finish = self._attention(block.mixer_norm, attention, d_model, streams)
        if block.config.placement == "parallel":
            assert isinstance(mlp, MLP)
            also = self._mlp(block.mixer_norm, mlp, d_model)
            finish(nn.Identity())
            also(nn.Identity())
            return
        finish(block.mixer_post_norm)
        self._norm_in_place(block.mixer_out_norm, d_model)
        if mlp is not None:
            assert isinstance(mlp, MLP)
            self._mlp(block.ffn_norm, mlp, d_model)(block.ffn_post_norm)
            self._norm_in_place(block.ffn_out_norm, d_model)

    def _norm_in_place(self, norm: nn.Module, d_model: int) -> None:
        if not isinstance(norm, nn.Identity):
            self._add(
                NORM, width=d_model, mode=WRITE, **self.x.as_source(), **self.x.as_target(), **self._norm_fields(norm)
            )

    def _attention(
        self, norm: nn.Module, attention: Attention, d_model: int, streams: Sequence[Tensor]
    ) -> Callable[[nn.Module], None]:
        """All but the last product, which is added with the norm after it: see `_branch_end`."""
        inputs = [attention.wq, attention.wk, attention.wv]
        matrix = self._packed(torch.cat([linear.weight.detach() for linear in inputs]))
        biases = [linear.bias.detach() for linear in inputs if linear.bias is not None]
        config = attention.config
        qkv, out = self._rows(matrix.outputs), self._rows(config.num_heads * config.d_head)
        self._round(self.x, d_model, matrix, norm)
        bias = self._address(torch.cat(biases)) if biases else 0
        self._add(PRODUCT, mode=WRITE, bias=bias, **self._fields(matrix), **qkv.as_target())
        shape = self._heads(attention, streams)
        self._add(REMEMBER, **shape, **self._before_keys(attention), **qkv.as_source())
        self._add(ATTEND, **shape, **self._scoring(attention), **qkv.as_source(), **out.as_target())
        return self._branch_end(out, attention.wo, d_model)

    def _heads(self, attention: Attention, streams: Sequence[Tensor]) -> dict[str, int]:
        config, (keys, values) = attention.config, streams
        loops = importlib.import_module("groundup.inference.decode.heads")
        together = loops.heads_at_once(config.d_head, config.num_heads // config.num_kv_heads)
        self._most_heads = max(self._most_heads, config.num_heads)
        scores, add_values, fetch = loops.head_loops(config.d_head, together, keys.dtype == torch.bfloat16)
        return {
            "heads": config.num_heads, "kv_heads": config.num_kv_heads, "d_head": config.d_head,
            "keys": keys.data_ptr(), "values": values.data_ptr(), "in_bf16": keys.dtype == torch.bfloat16,
            "part_heads": together, "scores": scores, "add_values": add_values, "fetch": fetch,
        }  # fmt: skip

    def _before_keys(self, attention: Attention) -> dict[str, Any]:
        config = attention.config
        fields: dict[str, Any] = {"scale": config.d_head**-0.5 if config.scale is None else config.scale}
        if config.rope is not None:
            fields["half"], fields["cos"], fields["sin"] = self._rotary(config.rope, config.d_head)
        if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
            gains = {"q_gain": self._address(attention.q_norm.weight), "k_gain": self._address(attention.k_norm.weight)}
            fields |= gains | {"eps": attention.q_norm.eps, "whole_norm": config.qk_norm == "whole"}
        return fields

    def _rotary(self, rope: Rope, d_head: int) -> tuple[int, int, int]:
        """Pairs that turn, and the addresses of their cosines and sines, (context, pairs) each."""
        if (rope, d_head) not in self._tables:
            cos, sin = (t.reshape(self.context, -1) for t in rope.tables(torch.arange(self.context)[None], d_head))
            self._tables[rope, d_head] = (cos.shape[1], self._address(cos), self._address(sin))
        return self._tables[rope, d_head]

    def _scoring(self, attention: Attention) -> dict[str, Any]:
        config = attention.config
        return {
            "window": NO_WINDOW if config.window is None else config.window,
            "sink_tokens": config.sink_tokens,
            "softcap": config.softcap or 0.0,
            "slopes": self._address(None if attention.slopes is None else torch.tensor(attention.slopes.values)),
            "sinks": self._address(None if attention.sinks is None else attention.sinks.weight),
        }

    def _mlp(self, norm: nn.Module, mlp: MLP, d_model: int) -> Callable[[nn.Module], None]:
        gate = None if mlp.gate is None else mlp.gate
        matrix = self._packed(mlp.up.weight, None if gate is None else gate.weight)
        hidden = self._rows(mlp.config.d_ff)
        first, second = (mlp.up, None) if gate is None else (gate, mlp.up)
        self._round(self.x, d_model, matrix, norm)
        self._add(
            PRODUCT, mode=WRITE, gated=gate is not None, activation=ACTIVATIONS.index(mlp.config.activation),
            bias=self._address(first.bias), up_bias=self._address(None if second is None else second.bias),
            **self._fields(matrix), **hidden.as_target(),
        )  # fmt: skip
        return self._branch_end(hidden, mlp.down, d_model)

    def _branch_end(self, source: Rows, linear: Linear, d_model: int) -> Callable[[nn.Module], None]:
        """Adds the branch to x, through the norm that is given, in operations that are only then written down."""
        matrix = self._packed(linear.weight)
        bias = self._address(linear.bias)

        def finish(post: nn.Module) -> None:
            self._round(source, source.tensor.shape[1], matrix, nn.Identity())
            fields = {"bias": bias, **self._fields(matrix)}
            if isinstance(post, nn.Identity):
                self._add(PRODUCT, mode=ADD, **fields, **self.x.as_target())
                return
            branch = self._rows(d_model)
            self._add(PRODUCT, mode=WRITE, **fields, **branch.as_target())
            norm = self._norm_fields(post)
            self._add(NORM, width=d_model, mode=ADD, **norm, **branch.as_source(), **self.x.as_target())

        return finish
