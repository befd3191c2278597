"""Keys and values in eight bits: a page store that rounds what it is given, with a scale for each token and head.

    streams[layer]   k: (slots, kv_heads, d_head) int8 or e4m3, v: ...
    scales[layer]    k: (slots, kv_heads) float32, v: ...                 x is nearly values * scale

A long context's memory, and what a decode step reads of it, is half of bfloat16's and a quarter of float32's, but for
the scales: four bytes for d_head numbers. The scale is that of the largest number of the head's vector, so an error is
half a step at most: amax / 254 for int8; |x| / 16, or amax / 458,752 where that is more, for e4m3.

A token sees itself and all others rounded, in the pass that computes them and later alike: so answers depend neither on
how a prompt was cut nor on what was cached. Per-token scales: Sheng et al. 2023, "FlexGen" (arXiv:2303.06865), section
5; keys have large channels, for which Liu et al. 2024, "KIVI" (arXiv:2402.02750), take scales per channel below 8 bits.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from groundup.config import nearest
from groundup.inference.batch_cache import PageStore, stream_shapes
from groundup.kernels.quantize import E4M3, Quantized, dequantize, quantize_rows
from groundup.model import ModelConfig
from groundup.model.cache import Cache, NoCache

FORMATS = {"int8": torch.int8, "fp8": E4M3}
SCALE_BYTES = 4


def check_format(name: str) -> torch.dtype:
    """The type of a format's numbers. ValueError for one that does not exist."""
    if name not in FORMATS:
        raise ValueError(f"cache_format {name!r}{nearest(name, FORMATS)}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def quantized_bytes_per_token(config: ModelConfig) -> int:
    """Of one sequence's pages, over all layers: a byte for each number, and the scales."""
    shapes = [shape for i in range(config.num_layers) for shape in stream_shapes(config.block(i).mixer)]
    vectors = [shape[0] if len(shape) == 2 else 1 for shape in shapes]
    return sum(n * (shape[-1] + SCALE_BYTES) for n, shape in zip(vectors, shapes, strict=True))


class QuantizedPageStore(PageStore):
    """A `PageStore` of int8 or float8; `dtype` is the type that `fetch` gives."""

    gathers_only: ClassVar[bool] = True

    def __init__(
        self,
        format: str,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        rows: int,
        row_pages: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.number = check_format(format)
        super().__init__(config, num_pages, page_size, rows, row_pages, self.number, device)
        self.dtype = dtype
        self.scales = [
            [torch.zeros(*stream.shape[:-1], 1, device=device) for stream in streams] for streams in self.streams
        ]

    def write(self, layer: int, slots: Int[Tensor, " tokens"], streams: Sequence[Tensor]) -> None:
        stored = zip(self.streams[layer], self.scales[layer], streams, strict=True)
        for values, scales, new in stored:
            quantized = quantize_rows(new, self.number)
            # As bytes: not every device can index float8.
            values.view(torch.uint8)[slots] = quantized.values.view(torch.uint8)
            scales[slots] = quantized.scales

    def fetch(self, layer: int, pages: Int[Tensor, "batch pages"]) -> tuple[Tensor, ...]:
        found = []
        for values, scales in zip(self.streams[layer], self.scales[layer], strict=True):
            bytes_, factors = (self._pages(t, pages) for t in (values.view(torch.uint8), scales))
            found.append(dequantize(Quantized(bytes_.view(self.number), factors)).to(self.dtype))
        return tuple(found)

    def _pages(self, stream: Tensor, pages: Int[Tensor, "batch pages"]) -> Tensor:
        by_page = stream.unflatten(0, (-1, self.page_size)).index_select(0, pages.flatten())
        return by_page.unflatten(0, pages.shape).flatten(1, 2)

    def seen(self, streams: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return rounded(streams, self.number)

    def scrub(self, pages: Sequence[int]) -> None:
        for page in pages:
            for stream in (stream for kept in (self.streams, self.scales) for layer in kept for stream in layer):
                stream[page * self.page_size : (page + 1) * self.page_size] = 0


def rounded(streams: Sequence[Tensor], number: torch.dtype) -> tuple[Tensor, ...]:
    """What remains of keys and values that were kept as such numbers."""
    return tuple(dequantize(quantize_rows(stream, number)).to(stream.dtype) for stream in streams)


class RoundedCache(NoCache):
    """For scoring a text in one pass: remembers nothing, and shows each layer its keys and values rounded."""

    def __init__(self, format: str) -> None:
        self.number = check_format(format)

    def append(self, positions: Int[Tensor, "batch seq"], *streams: Tensor) -> tuple[Tensor, ...]:
        return (positions, *rounded(streams, self.number))


def rounded_caches(config: ModelConfig, format: str) -> list[Cache]:
    """One for each layer. ValueError for an unknown format."""
    return [RoundedCache(format) for _ in range(config.num_layers)]
