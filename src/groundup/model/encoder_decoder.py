"""The Transformer of 2017: an encoder reads the source whole, a decoder writes the target token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.block import Block
from groundup.model.cache import Cache
from groundup.model.cross_attention import Memory
from groundup.model.empty import to_empty
from groundup.model.latent import LatentAttentionConfig
from groundup.model.linear import Embedding
from groundup.model.position import LearnedPositions
from groundup.model.transformer import ModelConfig, Transformer


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Two stacks: the encoder's attention has causal=False, the decoder's blocks have `cross`.

    `share_embeddings`: one table of tokens for source and target, and with the decoder's `tie_embeddings` for the head
    as well (Vaswani et al. 2017, section 3.4, arXiv:1706.03762). The encoder has no head.
    """

    encoder: ModelConfig
    decoder: ModelConfig
    share_embeddings: bool = True

    def __post_init__(self) -> None:
        ours, theirs = self.encoder, self.decoder
        layers = [side.blocks[: side.num_layers] for side in (ours, theirs)]
        ahead = not any(getattr(block.mixer, "causal", False) for block in layers[0])
        faults = [
            (not ahead, "a layer of the encoder has causal=True; give causal=False, as it may read ahead"),
            (
                any(isinstance(block.mixer, LatentAttentionConfig) for block in layers[0]),
                "a layer of the encoder has latent attention, which looks back only; give attention with causal=False",
            ),
            (
                any(b.cross for b in layers[0]),
                "a layer of the encoder has cross; only a decoder has another text to see",
            ),
            (
                not theirs.causal,
                "a layer of the decoder has causal=False; give causal=True, as it writes what comes next",
            ),
            (
                not any(b.cross for b in layers[1]),
                "no layer of the decoder has cross, so none sees the source; give it one",
            ),
            (
                ours.d_model != theirs.d_model,
                f"d_model is {ours.d_model} in the encoder and {theirs.d_model} in the decoder; expected one",
            ),
            (
                self.share_embeddings and ours.vocab_size != theirs.vocab_size,
                f"vocab_size is {ours.vocab_size} in the encoder and {theirs.vocab_size} in the decoder; expected one, "
                "or share_embeddings=False",
            ),
            (bool(ours.multi_token or theirs.multi_token), "multi_token is for a decoder alone; leave it out"),
        ]
        if wrong := [fault for holds, fault in faults if holds]:
            raise ValueError(f"encoder-decoder: {'; '.join(wrong)}")

    @property
    def vocab_size(self) -> int:
        """The tokens that can be written."""
        return self.decoder.vocab_size

    @property
    def logit_softcap(self) -> float | None:
        """As the decoder's."""
        return self.decoder.logit_softcap


class SharedEmbedding(nn.Module):
    """Another module's table of tokens."""

    def __init__(self, table: Embedding) -> None:
        super().__init__()
        self._owner = (table,)  # in a tuple, so that the table is neither registered nor saved twice

    @property
    def weight(self) -> nn.Parameter:
        return self._owner[0].weight

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        return self._owner[0](tokens)


class EncoderDecoder(nn.Module):
    """An encoder and a decoder, each a `Transformer`, initialised with seed 0 unless built on the meta device.

    `compute_dtype`, `dropout`, `recompute` and `compiled` are as in `Transformer`, and hold for both.
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.empty(0).device
        with torch.device("meta"):
            self.encoder, self.decoder = Transformer(config.encoder), Transformer(config.decoder)
        self.encoder.head = None
        if config.share_embeddings:
            self.encoder.embed = SharedEmbedding(self.decoder.embed)  # type: ignore[assignment]
        if device.type != "meta":
            to_empty(self, device)
            self.init_weights(seed=0)

    def init_weights(self, seed: int, residual: Literal["scaled", "zero"] = "scaled") -> None:
        """As `Transformer.init_weights`; the two sides draw different numbers."""
        self.encoder.init_weights(seed, residual, prefix="encoder.")
        self.decoder.init_weights(seed, residual, prefix="decoder.")

    def forward(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch seq"],
        source_positions: Int[Tensor, "batch source"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits in float32 of the token after each of the target's. Positions of -1 mark padding."""
        return self.logits(self.hidden(source, target, source_positions, positions))

    def hidden(
        self,
        source: Int[Tensor, "batch source"],
        target: Int[Tensor, "batch seq"],
        source_positions: Int[Tensor, "batch source"] | None = None,
        positions: Int[Tensor, "batch seq"] | None = None,
        source_segments: Int[Tensor, "batch source"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        auxiliary: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """What the head reads. Segments number the pairs of texts in a row; `auxiliary` is as in `Transformer`."""
        memories = self.read(source, source_positions, source_segments, auxiliary)
        return self.decoder.hidden(target, positions, None, segments, auxiliary, memories)

    def read(
        self,
        source: Int[Tensor, "batch source"],
        positions: Int[Tensor, "batch source"] | None = None,
        segments: Int[Tensor, "batch source"] | None = None,
        auxiliary: list[Tensor] | None = None,
    ) -> list[Memory | None]:
        """Run the encoder: what each layer of the decoder remembers of the source (None: it has no `cross`)."""
        side = self.encoder
        layout = replace(side.layout(source, positions, segments=segments), auxiliary=auxiliary)
        encoded = side.final_norm(side.run_blocks(side.embed_tokens(source, layout), layout))
        crosses = [block.cross for block in self.decoder.blocks if isinstance(block, Block)]
        return [None if cross is None else cross.remember(encoded, layout) for cross in crosses]

    def decode(
        self,
        target: Int[Tensor, "batch seq"],
        memories: Sequence[Memory | None],
        positions: Int[Tensor, "batch seq"] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits after a source that was read before. `caches`, as from `new_caches`, remember the target so far."""
        return self.logits(self.decoder.hidden(target, positions, caches, memories=memories))

    @torch.no_grad()
    def generate(
        self,
        source: Int[Tensor, "batch source"],
        start: int,
        max_tokens: int,
        end: int | None = None,
        source_positions: Int[Tensor, "batch source"] | None = None,
    ) -> Int[Tensor, "batch written"]:
        """The likeliest next token, again and again, after `start`, which is not in the result.

        At most `max_tokens`; a row that has written `end` goes on with it until all have. Puts the model into no mode:
        call `eval()` before where there is dropout.
        """
        if max_tokens < 1:
            raise ValueError(f"generate: max_tokens={max_tokens}; expected at least 1")
        learned = self.config.decoder.positions
        if isinstance(learned, LearnedPositions) and max_tokens > learned.max_length:
            raise ValueError(f"generate: max_tokens={max_tokens}; the decoder learned {learned.max_length} positions")
        memories, caches = self.read(source, source_positions), self.new_caches(max_tokens)
        newest = source.new_full((source.shape[0], 1), start)
        ended, written = torch.zeros_like(newest, dtype=torch.bool), []
        while len(written) < max_tokens and not (written and end is not None and bool(ended.all())):
            newest = self.decode(newest, memories, caches=caches)[:, -1:].argmax(-1)
            if end is not None:
                newest = newest.masked_fill(ended, end)
                ended = newest == end
            written.append(newest)
        return torch.cat(written, 1)

    def new_caches(self, capacity: int = 0) -> list[Cache]:
        """An empty cache for each layer of the decoder."""
        return self.decoder.new_caches(capacity)

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        return self.decoder.logits(hidden)

    @property
    def head_weight(self) -> Tensor:
        """The (vocab, d_model) matrix of the head, which is the decoder's token table when tied."""
        return self.decoder.head_weight

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder's, then the decoder's."""
        return nn.ModuleList([*self.encoder.blocks, *self.decoder.blocks])

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.decoder.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.encoder.compute_dtype = self.decoder.compute_dtype = dtype

    @property
    def dropout(self) -> float:
        return self.decoder.dropout

    @dropout.setter
    def dropout(self, share: float) -> None:
        self.encoder.dropout = self.decoder.dropout = share

    @property
    def recompute(self) -> bool | int:
        """The number of blocks of either side (True: all) whose activations are recomputed."""
        return self.decoder.recompute

    @recompute.setter
    def recompute(self, blocks: bool | int) -> None:
        self.encoder.recompute = self.decoder.recompute = blocks

    @property
    def compiled(self) -> bool:
        return self.decoder.compiled

    @compiled.setter
    def compiled(self, value: bool) -> None:
        self.encoder.compiled = self.decoder.compiled = value
