"""From a model to the operations of its decode step, or to the reason why it has none.

A block is x <- out(x + post(f(pre(x)))) for its mixer and for the feed-forward layer, and each slot of a norm becomes
part of an operation or one of its own:

    pre     in the `round` before f's first product
    post    f's last product goes to a buffer, and `norm` adds its norm to x; without it the product adds to x itself
    out     `norm` of x, in place
"""

import importlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from groundup.inference.decode.building import Builder, Finish
from groundup.inference.decode.mixing import attention, latent_attention
from groundup.inference.decode.operations import EMBED, GATHER, LARGEST, NORM, PRODUCT, WRITE
from groundup.inference.decode.recurring import recurrence
from groundup.model import (
    Attention,
    Block,
    LearnedPositions,
    SinusoidalPositions,
    Transformer,
)
from groundup.model.delta import GatedDelta
from groundup.model.feedforward import MLP
from groundup.model.latent import LatentAttention
from groundup.model.linear_attention import GatedLinear
from groundup.model.mamba import Mamba2
from groundup.model.position import sinusoids

ACTIVATIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "relu2")
"""In the order of the numbers that `rows.activate` goes by."""
HEAD_KINDS = {"int4": "int8"}
"""The head, whose errors go straight to the logits, is kept finer."""


class Program(Builder):
    """The operations of a model in order, with all that they point to; see `Builder` for the sizes."""

    def __init__(
        self,
        model: Transformer,
        streams: Sequence[Sequence[Tensor]],
        states: Sequence[Sequence[Tensor]],
        page_size: int,
        kind: str,
        rows: int,
        context: int,
    ) -> None:
        super().__init__(model.config.d_model, page_size, kind, rows, context)
        self._embed(model)
        for layer, block in enumerate(model.blocks.children()):
            assert isinstance(block, Block)
            self._block(block, streams[layer], states[layer])
        self._head(model)
        self.operations = self.finished()
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Tell each operation which product comes next."""
        products = np.flatnonzero(self.operations["kind"] == PRODUCT)
        following = np.searchsorted(products, np.arange(len(self.operations)), side="right")
        self.operations["next_product"] = products[following.clip(max=len(products) - 1)]
        *_, self.operations["fetch"] = importlib.import_module("groundup.inference.decode.heads").head_loops(
            16, 1, False
        )

    def _embed(self, model: Transformer) -> None:
        config, positions = model.config, None
        if isinstance(config.positions, LearnedPositions):
            assert model.positions is not None
            positions = model.positions.weight
            self.context = min(self.context, config.positions.max_length)
        elif isinstance(config.positions, SinusoidalPositions):
            positions = sinusoids(torch.arange(self.context), config.d_model)
        table = self.kept(model.embed.weight.detach().float().contiguous())
        self.add(
            EMBED, width=config.d_model, table=table.data_ptr(), position_table=self.address(positions),
            scale=config.d_model**0.5 if config.scale_embeddings else 1.0, **self.x.as_target(),
        )  # fmt: skip

    def _head(self, model: Transformer) -> None:
        width, wanted = self.d_model, self.new_rows(self.d_model)
        self.add(GATHER, wanted=1, width=width, **self.x.as_source(), **wanted.as_target())
        matrix = self.matrix(model.head_weight, kind=HEAD_KINDS.get(self.kind, self.kind))
        self.round(wanted, width, matrix, model.final_norm, wanted=1)
        self.product(matrix, wanted=1, target_width=model.config.vocab_size)
        self.add(LARGEST, wanted=2, source_width=model.config.vocab_size)

    def set_logits(self, address: int, searched: int) -> None:
        """Where the head writes: float32 (wanted, vocab), of which the caller takes care. Of the first `searched`
        tokens the most likely is searched."""
        head, search = self.operations[-2:]
        head["target"] = search["source"] = address
        search["width"] = searched

    def _block(self, block: Block, streams: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        mlp = block.ffn
        finish = self._mixer(block, streams, states)
        if block.config.placement == "parallel":
            assert isinstance(mlp, MLP)
            also = self._mlp(block.mixer_norm, mlp)
            finish(nn.Identity())
            also(nn.Identity())
            return
        finish(block.mixer_post_norm)
        self._norm_in_place(block.mixer_out_norm)
        if mlp is not None:
            assert isinstance(mlp, MLP)
            self._mlp(block.ffn_norm, mlp)(block.ffn_post_norm)
            self._norm_in_place(block.ffn_out_norm)

    def _mixer(self, block: Block, streams: Sequence[Tensor], states: Sequence[Tensor]) -> Finish:
        mixer = block.mixer
        if isinstance(mixer, Mamba2 | GatedDelta | GatedLinear):
            return recurrence(self, block.mixer_norm, mixer, states)
        if isinstance(mixer, LatentAttention):
            return latent_attention(self, block.mixer_norm, mixer, streams)
        assert isinstance(mixer, Attention)
        return attention(self, block.mixer_norm, mixer, streams)

    def _norm_in_place(self, norm: nn.Module) -> None:
        if not isinstance(norm, nn.Identity):
            places = self.x.as_source() | self.x.as_target()
            self.add(NORM, width=self.d_model, mode=WRITE, **places, **self.norm_fields(norm))

    def _mlp(self, norm: nn.Module, mlp: MLP) -> Finish:
        matrix = self.matrix(mlp.up.weight, None if mlp.gate is None else mlp.gate.weight)
        hidden = self.shared_rows("hidden", mlp.config.d_ff)
        first, second = (mlp.up, None) if mlp.gate is None else (mlp.gate, mlp.up)
        self.round(self.x, self.d_model, matrix, norm)
        self.product(
            matrix, mode=WRITE, gated=mlp.gate is not None, activation=ACTIVATIONS.index(mlp.config.activation),
            bias=self.address(first.bias), up_bias=self.address(None if second is None else second.bias),
            **hidden.as_target(),
        )  # fmt: skip
        return self.branch_end(hidden, mlp.down)
