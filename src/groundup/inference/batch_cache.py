"""One store of pages for every layer, and the view of it that a forward pass has.

    streams[layer]   k: (slots, kv_heads, d_head), v: ...       slot = page * page_size + offset
    tables           row of a sequence -> its pages, for all layers: the token at position p of row r is in
                     slot tables[r, p // page_size] * page_size + p % page_size
    states[layer]    (rows, ...) for layers with a state of fixed size

Index tensors are made once per pass and shared by its layers; tables are written page by page as sequences grow, so
no Python work is done per token that was computed before. `append` gathers whole pages; what lies in them behind a
row's last token is at later positions, which no query sees. A layer with a window gathers the pages of its window.

Few queries on a GPU need no gathering: `InPlaceCache` gives the store itself and its tables, and attends to them by a
kernel that looks pages up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup import kernels
from groundup.device import CACHE_LINE, line_aligned_zeros
from groundup.kernels.paged import MOST_ROWS
from groundup.model import AttentionConfig, LatentAttentionConfig, ModelConfig
from groundup.model.block import MixerConfig, RecurrentConfig

Streams = list[list[Tensor]]


def stream_shapes(mixer: MixerConfig) -> list[tuple[int, ...]]:
    """What a layer remembers of one token: keys and values, or a latent and a rotary key; nothing if recurrent."""
    match mixer:
        case AttentionConfig():
            return [(mixer.num_kv_heads, mixer.d_head)] * 2
        case LatentAttentionConfig():
            return [(mixer.kv_rank,), (mixer.d_rope,)]
    return []


def new_streams(shapes: Sequence[Sequence[tuple[int, ...]]], dtype: torch.dtype, device: torch.device) -> Streams:
    """Zeros of these shapes for each layer; on a CPU one after another in large pages, see `line_aligned_zeros`."""
    if device.type != "cpu":
        return [[torch.zeros(shape, dtype=dtype, device=device) for shape in of_layer] for of_layer in shapes]
    sizes = [-(-math.prod(shape) * dtype.itemsize // CACHE_LINE) * CACHE_LINE for layer in shapes for shape in layer]
    pieces = iter(line_aligned_zeros(sum(sizes)).split(sizes) if sizes else ())
    return [[_begin(next(pieces), shape, dtype) for shape in of_layer] for of_layer in shapes]


def _begin(memory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that begins where some bytes begin."""
    return memory.view(dtype)[: math.prod(shape)].view(shape)


def is_recurrent(config: ModelConfig) -> bool:
    """Whether some layer carries a state from token to token, which no page holds."""
    return any(isinstance(config.block(i).mixer, RecurrentConfig) for i in range(config.num_layers))


def most_in_place(config: ModelConfig) -> int:
    """Tokens of a sequence in one pass that attention can take without gathering pages; 0 where no layer can."""
    mixers = [config.block(i).mixer for i in range(config.num_layers)]
    groups = [mixer.num_heads // mixer.num_kv_heads for mixer in mixers if isinstance(mixer, AttentionConfig)]
    return MOST_ROWS // max(groups) if groups else 0


class Reach(NamedTuple):
    """How far back any layer of a model looks: `window` tokens, and the first `sink_tokens` of the text."""

    window: int
    sink_tokens: int


def reach(config: ModelConfig) -> Reach | None:
    """None where some layer sees all that came before. Layers that keep nothing in pages do not count."""
    mixers = [config.block(i).mixer for i in range(config.num_layers)]
    windows = [getattr(mixer, "window", None) for mixer in mixers if stream_shapes(mixer)]
    known = [window for window in windows if window is not None]
    if not known or len(known) < len(windows):
        return None
    return Reach(max(known), max(getattr(mixer, "sink_tokens", 0) for mixer in mixers))


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Of one sequence's pages, over all layers."""
    shapes = [shape for i in range(config.num_layers) for shape in stream_shapes(config.block(i).mixer)]
    return sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize


class PageStore:
    """The memory: `num_pages` pages of every stream, `rows` page tables of up to `row_pages`, and as many states.

    A store that keeps its streams in a form of its own overrides `write`, `fetch` and `seen`, and says `gathers_only`.
    """

    gathers_only: ClassVar[bool] = False

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        rows: int,
        row_pages: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_pages, self.page_size, self.rows, self.dtype = num_pages, page_size, rows, dtype
        self.mixers = [config.block(i).mixer for i in range(config.num_layers)]
        # One page more, which nobody gets: short tables are filled up with it. Zeros, not whatever was there: a masked
        # key has weight 0, and 0 times infinity would not be 0.
        slots = (num_pages + 1) * page_size
        shapes = [[(slots, *shape) for shape in stream_shapes(mixer)] for mixer in self.mixers]
        self.streams = new_streams(shapes, dtype, torch.device(device))
        self.states: list[tuple[Tensor, ...]] = [() for _ in self.mixers]
        self.tables = np.full((rows, row_pages), num_pages, dtype=np.int64)
        self.device = torch.device(device)

    def write(self, layer: int, slots: Int[Tensor, " tokens"], streams: Sequence[Tensor]) -> None:
        """Keep a layer's streams of some tokens, each (tokens, ...), in these slots."""
        stored = self.streams[layer]
        assert len(stored) == len(streams), f"layer {layer} has {len(streams)} streams, not {len(stored)}"
        for store, new in zip(stored, streams, strict=True):
            store[slots] = new

    def fetch(self, layer: int, pages: Int[Tensor, "batch pages"]) -> tuple[Tensor, ...]:
        """What a layer remembers in these pages: of each stream (batch, pages * page_size, ...)."""
        by_page = (stream.unflatten(0, (-1, self.page_size)) for stream in self.streams[layer])
        found = (pages_of.index_select(0, pages.flatten()) for pages_of in by_page)
        return tuple(each.unflatten(0, pages.shape).flatten(1, 2) for each in found)

    def seen(self, streams: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the pass that computes these streams attends to: what it would fetch later."""
        return tuple(streams)

    def place(self, row: int, index: int, pages: Sequence[int]) -> None:
        """Write `pages` into a row's table, from its entry `index` on."""
        self.tables[row, index : index + len(pages)] = pages

    def clear(self, row: int, index: int = 0) -> None:
        """Take a row's pages from its entry `index` on out of its table."""
        self.tables[row, index:] = self.num_pages

    def scrub(self, pages: Sequence[int]) -> None:
        """Zero pages of a request that failed: a NaN in them would reach the next holder through the mask."""
        for page in pages:
            for stream in (stream for streams in self.streams for stream in streams):
                stream[page * self.page_size : (page + 1) * self.page_size] = 0


@dataclass(frozen=True)
class Gather:
    """Pages to fetch, per row and in order, and the position that each of their slots then has (-1: none)."""

    pages: Int[Tensor, "batch pages"]
    positions: Int[Tensor, "batch k_seq"]


@dataclass
class SpanBatch:
    """One forward pass: tokens at `positions` (-1: padding) of the sequences whose tables are `rows`.

    Row i looks back over its pages below `ends[i]`; `starts[i]` is the first of its positions. `from_zero` says that
    all rows begin here, and `padded` that some positions are padding; `in_place`, that layers of keys and values attend
    to the store's pages where they lie. New states are held back until `commit`, so that
    a pass that fails has changed nothing but slots that are written again.
    """

    store: PageStore
    rows: list[int]
    starts: list[int]
    ends: list[int]
    tokens: Int[Tensor, "batch seq"]
    positions: Int[Tensor, "batch seq"]
    from_zero: bool
    padded: bool
    in_place: bool = False
    states: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store, device = self.store, self.tokens.device
        page_size = store.page_size
        self.table = torch.from_numpy(store.tables[self.rows, : -(-max(self.ends) // page_size)]).to(device)
        at = self.positions.clamp(min=0)
        slots = self.table.gather(1, at // page_size) * page_size + at % page_size
        self.real = (self.positions.flatten() >= 0).nonzero()[:, 0] if self.padded else None
        self.slots = slots.flatten() if self.real is None else slots.flatten()[self.real]
        self.row_index = torch.tensor(self.rows, device=device)
        self._gathers: dict[tuple[int | None, int], Gather] = {}

    def caches(self) -> list["SpanCache"]:
        """One per layer."""
        return [
            (InPlaceCache if self.in_place and isinstance(mixer, AttentionConfig) else SpanCache)(self, layer)
            for layer, mixer in enumerate(self.store.mixers)
        ]

    def gather(self, window: int | None, sink_tokens: int) -> Gather:
        """For a layer with this window; made once and shared by all such layers."""
        if (window, sink_tokens) not in self._gathers:
            self._gathers[window, sink_tokens] = self._window(window, sink_tokens) or self._whole()
        return self._gathers[window, sink_tokens]

    def _whole(self) -> Gather:
        positions = torch.arange(max(self.ends), device=self.table.device)[None].expand(len(self.rows), -1)
        return Gather(self.table, positions)

    def _window(self, window: int | None, sink_tokens: int) -> Gather | None:
        """The pages with the first tokens and those of the window, unless that is nearly all there are."""
        if window is None:
            return None
        size = self.store.page_size
        first = [max(0, start - window + 1) // size for start in self.starts]
        count = max(-(-end // size) - page for end, page in zip(self.ends, first, strict=True))
        sinks = -(-sink_tokens // size)
        if sinks + count >= self.table.shape[1]:
            return None
        device = self.table.device
        begin = torch.tensor(first, device=device)[:, None]
        near = begin + torch.arange(count, device=device)
        far = torch.arange(sinks, device=device)[None].expand(len(self.rows), -1)
        # A page that is both near and far is fetched twice and seen once.
        known = torch.cat([far < begin, near < self.table.shape[1]], 1)
        numbers = torch.cat([far, near.clamp(max=self.table.shape[1] - 1)], 1)
        offsets = torch.arange(size, device=device)
        positions = (numbers[..., None] * size + offsets).masked_fill(~known[..., None], -1)
        return Gather(self.table.gather(1, numbers), positions.flatten(1))

    def commit(self) -> None:
        """Keep the new states: the pass has succeeded."""
        for layer, states in self.states.items():
            if not self.store.states[layer]:
                rows = self.store.rows
                self.store.states[layer] = tuple(state.new_zeros(rows, *state.shape[1:]) for state in states)
            for kept, new in zip(self.store.states[layer], states, strict=True):
                kept[self.row_index] = new


class SpanCache:
    """What one layer sees of a `SpanBatch`: a `Cache` of the model room."""

    def __init__(self, batch: SpanBatch, layer: int) -> None:
        mixer = batch.store.mixers[layer]
        self.batch, self.layer = batch, layer
        self.window: int | None = getattr(mixer, "window", None)
        self.sink_tokens: int = getattr(mixer, "sink_tokens", 0)

    @property
    def length(self) -> int:
        return 0 if self.batch.from_zero else max(self.batch.starts)

    def append(self, positions: Int[Tensor, "batch seq"], *streams: Tensor) -> tuple[Tensor, ...]:
        batch = self.batch
        self._write(streams)
        if batch.from_zero:
            return (positions, *batch.store.seen(streams))
        wanted = batch.gather(self.window, self.sink_tokens)
        length = wanted.positions.shape[1]
        return (wanted.positions, *(found[:, :length] for found in self._fetch(wanted)))

    def _write(self, streams: Sequence[Tensor]) -> None:
        batch = self.batch
        flat = [new.flatten(0, 1) for new in streams]
        batch.store.write(self.layer, batch.slots, flat if batch.real is None else [new[batch.real] for new in flat])

    def _fetch(self, wanted: Gather) -> tuple[Tensor, ...]:
        return self.batch.store.fetch(self.layer, wanted.pages)

    def state(self, *likes: Tensor) -> tuple[Tensor, ...]:
        """The rows' states; zeros for those that begin."""
        batch, kept = self.batch, self.batch.store.states[self.layer]
        if not kept or batch.from_zero:
            assert not any(batch.starts), "a row that goes on has a state"
            return tuple(torch.zeros_like(like) for like in likes)
        begins = torch.tensor([start == 0 for start in batch.starts], device=batch.row_index.device)
        rows = (state[batch.row_index] for state in kept)
        return tuple(row.masked_fill(begins.view(-1, *[1] * (row.dim() - 1)), 0) for row in rows)

    def keep(self, positions: Int[Tensor, "batch seq"], *states: Tensor) -> None:
        self.batch.states[self.layer] = states

    def crop(self, length: int) -> None:
        raise ValueError("a pass over pages is not cropped: the scheduler takes back positions and their pages")

    def next_positions(self) -> Int[Tensor, "batch 1"]:
        return torch.tensor(self.batch.ends, device=self.batch.tokens.device)[:, None]


class InPlaceCache(SpanCache):
    """For few queries: `append` gives the store's own streams, behind the page tables in place of positions; `attend`
    takes them."""

    def append(self, positions: Int[Tensor, "batch seq"], *streams: Tensor) -> tuple[Tensor, ...]:
        self._write(streams)
        return (self.batch.table, *self.batch.store.streams[self.layer])

    def attend(
        self,
        q: Float[Tensor, "batch seq heads d_head"],
        keys: Float[Tensor, "slots kv_heads d_head"],
        values: Float[Tensor, "slots kv_heads d_head"],
        q_pos: Int[Tensor, "batch seq"],
        tables: Int[Tensor, "batch pages"],
        *,
        window: int | None,
        sink_tokens: int,
        softcap: float | None,
        scale: float | None,
        sinks: Tensor | None,
        slopes: Tensor | None,
        **_causal_without_segments: Any,
    ) -> Float[Tensor, "batch seq heads d_head"]:
        return kernels.paged_attention(
            q, keys, values, q_pos, tables, page_size=self.batch.store.page_size, window=window,
            sink_tokens=sink_tokens, softcap=softcap, scale=scale, sinks=sinks, slopes=slopes,
        )  # fmt: skip
