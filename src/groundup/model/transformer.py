"""The language model: embed -> blocks -> head, for training, cached inference and the meta device."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundup.model.block import Block, BlockConfig, MixerConfig
from groundup.model.cache import Cache, DenseCache, NoCache
from groundup.model.cross_attention import Memory
from groundup.model.empty import to_empty
from groundup.model.hard_choice import Choice
from groundup.model.linear import Embedding, Linear
from groundup.model.multi_token import MultiToken, MultiTokenConfig
from groundup.model.norm import build_norm
from groundup.model.position import (
    Layout,
    LearnedPositions,
    PositionTable,
    SinusoidalPositions,
    rotary_tables,
    sinusoids,
)
from groundup.model.window_cache import WindowCache


@dataclass(frozen=True)
class ModelConfig:
    """An architecture. `blocks` is tiled over the layers: (local, local, global) repeats to num_layers.

    `context_length` is the length the model is meant for; only learned positions make it a hard limit.
    `norm_bias` is the layer norm's bias (an RMSNorm has none); the final norm is of the last block's kind.
    `scale_embeddings` multiplies token embeddings by sqrt(d_model) (Vaswani et al. 2017, section 3.4).
    `logit_softcap` c turns logits l into c * tanh(l / c). `multi_token` adds modules for training and
    drafting that `forward` does not run.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    blocks: tuple[BlockConfig, ...]
    context_length: int = 1024
    positions: LearnedPositions | SinusoidalPositions | None = None
    tie_embeddings: bool = False
    scale_embeddings: bool = False
    norm_eps: float = 1e-5
    norm_bias: bool = False
    final_norm: bool = True
    logit_softcap: float | None = None
    multi_token: MultiTokenConfig | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model: {name}={getattr(self, name)}; expected at least 1")
        if not self.blocks:
            raise ValueError("model: blocks is empty; expected at least one block to tile over the layers")
        if isinstance(self.positions, SinusoidalPositions) and self.d_model % 2:
            raise ValueError(
                f"model: d_model={self.d_model} is odd, and sinusoidal positions fill channels in pairs; "
                f"use {self.d_model + 1}"
            )
        if self.logit_softcap is not None and self.logit_softcap <= 0:
            raise ValueError(f"model: logit_softcap={self.logit_softcap}; expected a positive number")
        if self.multi_token is not None and not self.causal:
            raise ValueError("model: multi_token with causal=False; the tokens that it would predict are in sight")

    def block(self, layer: int) -> BlockConfig:
        """The block of this layer, counted from 0."""
        return self.blocks[layer % len(self.blocks)]

    @property
    def causal(self) -> bool:
        """Whether no layer looks ahead: what is needed to generate, and to be trained on the next token."""
        return all(getattr(block.mixer, "causal", True) for block in self.blocks[: self.num_layers])


class Transformer(nn.Module):
    """A language model of one stack, initialised with seed 0 unless built on the meta device.

    A decoder, such as GPT; with `causal=False` in its attention an encoder, such as BERT.

    Weights are float32 masters; `compute_dtype` is the activations' type. `recompute` is the number of
    blocks (True: all) whose activations are recomputed in the backward pass instead of kept; gradients
    are the same bit for bit. `compiled` says that the blocks were compiled, so that the loss may be, too.

    `stream` is the list that the residual stream runs through; sequence parallelism cuts it there.
    """

    stream: ClassVar[str] = "blocks"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype = torch.float32
        self.recompute: bool | int = False
        self.compiled = False
        self._dropout = 0.0
        device = torch.empty(0).device
        # Modules initialise themselves; on meta that costs nothing, and init_weights follows once.
        with torch.device("meta"):
            self._build(config)
        if device.type != "meta":
            to_empty(self, device)
            self.init_weights(seed=0)

    def _build(self, config: ModelConfig) -> None:
        d_model, layers = config.d_model, range(config.num_layers)
        # A tied table is also the head: unit logits ask for 1 / sqrt(d_model).
        std = d_model**-0.5 if config.tie_embeddings or config.scale_embeddings else 1.0
        self.embed = Embedding(config.vocab_size, d_model, std)
        self.positions = None
        if isinstance(config.positions, LearnedPositions):
            self.positions = PositionTable(config.positions.max_length, d_model, std)
        self.blocks = nn.ModuleList(Block(config.block(i), d_model, config.norm_eps, config.norm_bias) for i in layers)
        self.final_norm = nn.Identity()
        if config.final_norm:
            kind = config.block(config.num_layers - 1).norm
            self.final_norm = build_norm(kind, d_model, config.norm_eps, config.norm_bias)
        self.head = None if config.tie_embeddings else Linear(d_model, config.vocab_size)
        last = config.block(config.num_layers - 1)
        self.multi_token = None
        if config.multi_token is not None:
            self.multi_token = MultiToken(config.multi_token, last, d_model, config.norm_eps, config.norm_bias)
        mixers = [config.block(i).mixer for i in layers]
        self._rotary = list(dict.fromkeys(key for m in mixers for key in m.rotary))

    @property
    def dropout(self) -> float:
        """The share of embeddings and branch outputs that training sets to zero: against learning by heart."""
        return self._dropout

    @dropout.setter
    def dropout(self, share: float) -> None:
        if not 0.0 <= share < 1.0:
            raise ValueError(f"dropout={share}; expected a share of activations, from 0 to below 1")
        self._dropout = share
        for block in self.blocks.children():
            assert isinstance(block, Block)
            block.dropout = share

    @property
    def head_weight(self) -> Tensor:
        """The (vocab, d_model) matrix of the head, which is the token table when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "batch seq"] | None = None,
        caches: Sequence[Cache] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits in float32. See `hidden` for the arguments."""
        return self.logits(self.hidden(tokens, positions, caches, segments))

    def hidden(
        self,
        tokens: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "batch seq"] | None = None,
        caches: Sequence[Cache] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        auxiliary: list[Tensor] | None = None,
        memories: Sequence[Memory | None] | None = None,
        choices: list[Choice] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """What the head reads: the blocks' output after the final norm.

        `positions` continue each row of the caches by default; -1 marks padding. `caches` is one per
        block, as from `new_caches`. `segments` number the documents packed into a row: a token sees only
        its own document. Positions may run on through documents, as rotary embeddings are relative.
        `auxiliary` is filled with the losses of layers that have one (routers), for the objective to add, and
        `choices` with what layers sampled. `memories` is what each block remembers of a source, in the decoder of an
        `EncoderDecoder`.
        """
        layout = self.layout(tokens, positions, caches, segments)
        layout = replace(layout, auxiliary=auxiliary, choices=choices)
        x = self.run_blocks(self.embed_tokens(tokens, layout), layout, caches, memories)
        return self.final_norm(x)

    def layout(
        self,
        tokens: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "batch seq"] | None = None,
        caches: Sequence[Cache] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
    ) -> Layout:
        """Positions, segments and rotary tables of this call, computed once for all layers."""
        filled = next((cache for cache in caches or () if cache.length), None)
        if segments is not None and caches is not None:
            raise ValueError("segments and caches exclude each other: a cache holds one document per row")
        from_zero = positions is None and filled is None
        if positions is None:
            # One row, so that tables are computed for one row, until a cache says that rows differ.
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
            if filled is not None:
                positions = positions + filled.next_positions()
        self._check_length(tokens.shape[1] if from_zero else 0)
        tables = rotary_tables(positions, self._rotary)
        return Layout(positions.expand(tokens.shape), segments, from_zero, tables, tokens=tokens)

    def _check_length(self, seq: int) -> None:
        if isinstance(self.config.positions, LearnedPositions) and seq > self.config.positions.max_length:
            raise ValueError(
                f"a sequence of {seq} tokens does not fit: this model learned "
                f"{self.config.positions.max_length} positions"
            )

    def embed_tokens(self, tokens: Int[Tensor, "batch seq"], layout: Layout) -> Float[Tensor, "batch seq d_model"]:
        """Token vectors plus added positions, in the compute type."""
        x = self.embed(tokens)
        if self.config.scale_embeddings:
            x = x * self.config.d_model**0.5
        if self.positions is not None:
            x = x + self.positions(layout.positions)
        elif isinstance(self.config.positions, SinusoidalPositions):
            x = x + sinusoids(layout.positions, self.config.d_model)
        x = F.dropout(x, self._dropout, self.training) if self._dropout else x
        return x.to(self.compute_dtype)

    def run_blocks(
        self,
        x: Float[Tensor, "batch seq d_model"],
        layout: Layout,
        caches: Sequence[Cache] | None = None,
        memories: Sequence[Memory | None] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Every block in order, the first `recompute` of them under activation checkpointing."""
        kept: Sequence[Cache] = [NoCache()] * len(self.blocks) if caches is None else caches
        sources = [None] * len(self.blocks) if memories is None else memories
        recomputed = len(self.blocks) if self.recompute is True else int(self.recompute)
        for i, (block, cache, memory) in enumerate(zip(self.blocks, kept, sources, strict=True)):
            if i < recomputed and caches is None and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, cache, memory, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = block(x, layout, cache, memory)
        return x

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """The head's output in float32 (float64 for float64), soft-capped where the config says so."""
        logits = F.linear(hidden, self.head_weight.to(hidden.dtype))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def new_caches(self, capacity: int = 0) -> list[Cache]:
        """An empty cache per block, with room for `capacity` tokens before it first grows.

        A layer with a window gets one that keeps no more than its window. ValueError for a model that looks ahead.
        """
        if not self.config.causal:
            raise ValueError(
                "new_caches: a layer of this model has causal=False, so each new token would change what is "
                "remembered; call it on whole texts without caches, or build it with causal=True"
            )
        return [_new_cache(self.config.block(i).mixer, capacity) for i in range(self.config.num_layers)]

    @torch.no_grad()
    def init_weights(self, seed: int, residual: Literal["scaled", "zero"] = "scaled", *, prefix: str = "") -> None:
        """Truncated normal of 1 / sqrt(fan_in), norms at one, biases at zero.

        `residual` is about the projections that write into the residual stream (wo, down): "scaled"
        multiplies them by 1 / sqrt(2 num_layers) so that its variance does not grow with depth (GPT-2; a block
        with `cross` counts for three instead of two), "zero" makes every block the identity at first. Each module
        draws from its own generator, named after its path, so the result depends on neither the device nor torch's
        global state. `prefix` comes before that path in a model that is part of another.
        """
        if residual not in ("scaled", "zero"):
            raise ValueError(f"residual {residual!r} is unknown; expected one of 'scaled', 'zero'")
        layers = [self.config.block(i) for i in range(self.config.num_layers)]
        branches = 2 * len(layers) + sum(block.cross is not None for block in layers)
        scale = 0.0 if residual == "zero" else branches**-0.5
        outputs = {
            id(getattr(module, name)) for module in self.modules() for name in getattr(module, "residual_outputs", ())
        }
        for name, module in self.named_modules():
            reset = getattr(module, "reset_weights", None)
            if reset is not None:
                reset(_generator(seed, prefix + name), scale if id(module) in outputs else 1.0)


def _new_cache(mixer: MixerConfig, capacity: int) -> Cache:
    window = getattr(mixer, "window", None)
    return DenseCache(capacity) if window is None else WindowCache(window, getattr(mixer, "sink_tokens", 0), capacity)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
