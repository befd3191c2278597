"""Which tiles of a mask a kernel visits, from the positions, without ever making the mask.

A tile is a block of queries by a block of keys. Of each block the lowest and highest position and segment are
enough to say whether the mask shows nothing of a tile (it is skipped: its keys are never loaded), all of it (no
masking inside), or perhaps a part. A kernel walks the list of its row: first tiles that need a mask, then whole
ones. The lists take 4 bytes per tile, 1/4096 of what a mask of one byte per pair takes with tiles of 128 x 128.
The idea of lists of tiles is FlexAttention's (Dong et al. 2024, arXiv:2412.05496).
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR = 2**29
"""Beyond every position, and differences of two do not overflow int32."""


class Mask(NamedTuple):
    """What `visible` computes the mask from; rows is 1 where the whole batch shares one mask.

    q_pos, k_pos, q_segments, k_segments: int32 (rows, seq), contiguous; positions None are 0, 1, 2, ...
    anchors: int8 (rows, k_seq), of keys that stay visible from outside of the window
    """

    q_seq: int
    k_seq: int
    causal: bool
    window: int | None = None
    q_pos: Tensor | None = None
    k_pos: Tensor | None = None
    q_segments: Tensor | None = None
    k_segments: Tensor | None = None
    anchors: Tensor | None = None

    @property
    def rows(self) -> int:
        given = self.k_pos if self.q_segments is None else self.q_segments
        return 1 if given is None else given.shape[0]


class Tiles(NamedTuple):
    """order: int32 (rows, blocks, other blocks), the tiles of each block, those that need a mask first.
    counts: int32 (rows, blocks, 2), how many need a mask, and how many are visited in all.
    """

    order: Tensor
    counts: Tensor


def tiles_of_queries(mask: Mask, device: torch.device, q_block: int, k_block: int) -> Tiles:
    """For each block of queries its blocks of keys."""
    return _tiles(mask, device, q_block, k_block, False)


def tiles_of_keys(mask: Mask, device: torch.device, q_block: int, k_block: int) -> Tiles:
    """For each block of keys its blocks of queries."""
    return _tiles(mask, device, q_block, k_block, True)


def _tiles(mask: Mask, device: torch.device, q_block: int, k_block: int, of_keys: bool) -> Tiles:
    """Masks that follow from lengths alone are the same in every layer and step, so their lists are kept.

    Not where torch.compile traces (it makes the lists part of its graph), nor while a CUDA graph is captured
    (they would have no content until it is replayed).
    """
    counted = mask.k_pos is None and mask.q_segments is None and mask.anchors is None
    if not counted or torch.compiler.is_compiling() or _is_capturing(device):
        return _lists(mask, device, q_block, k_block, of_keys)
    return _kept_lists(mask, device, q_block, k_block, of_keys)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@functools.lru_cache(maxsize=64)
def _kept_lists(mask: Mask, device: torch.device, q_block: int, k_block: int, of_keys: bool) -> Tiles:
    # Made in inference mode, they could not be saved for a backward pass later.
    with torch.inference_mode(False):
        return _lists(mask, device, q_block, k_block, of_keys)


def _lists(mask: Mask, device: torch.device, q_block: int, k_block: int, of_keys: bool) -> Tiles:
    needs_mask, whole = classify(mask, device, q_block, k_block)
    if of_keys:
        needs_mask, whole = needs_mask.mT, whole.mT
    rank = torch.where(needs_mask, 0, torch.where(whole, 1, 2)).to(torch.uint8)
    counts = torch.stack([needs_mask.sum(-1), needs_mask.sum(-1) + whole.sum(-1)], -1)
    return Tiles(rank.sort(dim=-1, stable=True).indices.int().contiguous(), counts.int().contiguous())


def classify(mask: Mask, device: torch.device, q_block: int, k_block: int) -> tuple[Tensor, Tensor]:
    """Boolean (rows, blocks of queries, blocks of keys): perhaps visible in part, and visible as a whole.

    Never wrong in what it calls empty or whole; it may call partial what a closer look would find to be either.
    """
    queries, keys = _places(mask.q_pos, mask.q_seq, device), _places(mask.k_pos, mask.k_seq, device)
    q_low, q_high = (x[:, :, None] for x in _bounds(queries, q_block, 0))
    k_low, k_high = (x[:, None] for x in _bounds(keys, k_block, 0))
    # Padding has position -1, and what fills up the last block of keys counts as such: a block with it is not whole.
    # Queries that fill up the last block are not stored, so their mask does not matter.
    seen = (q_high >= 0) & (k_high >= 0)
    whole = _all_valid(queries, q_block, 0)[:, :, None] & _all_valid(keys, k_block, -1)[:, None]
    if mask.causal:
        seen, whole = seen & (k_low <= q_high), whole & (k_high <= q_low)
    if mask.window is not None:
        near, all_near = q_low - k_high < mask.window, q_high - k_low < mask.window
        if not mask.causal:
            near, all_near = near & (k_low - q_high < mask.window), all_near & (k_high - q_low < mask.window)
        if mask.anchors is not None:
            near = near | _in_blocks(mask.anchors, k_block, 0).any(-1)[:, None]
        seen, whole = seen & near, whole & all_near
    if mask.q_segments is not None and mask.k_segments is not None:
        q_first, q_last = (x[:, :, None] for x in _bounds(mask.q_segments, q_block, None))
        k_first, k_last = (x[:, None] for x in _bounds(mask.k_segments, k_block, None))
        seen = seen & (q_first <= k_last) & (k_first <= q_last)
        whole = whole & (q_first == q_last) & (k_first == k_last) & (q_first == k_first)
    whole = whole & seen
    return seen & ~whole, whole


def _places(positions: Tensor | None, seq: int, device: torch.device) -> Tensor:
    return torch.arange(seq, device=device, dtype=torch.int32)[None] if positions is None else positions


def _in_blocks(x: Tensor, block: int, fill: int) -> Tensor:
    """(rows, blocks, block), the last one filled up."""
    return F.pad(x, (0, -x.shape[1] % block), value=fill).unflatten(1, (-1, block))


def _all_valid(positions: Tensor, block: int, fill: int) -> Tensor:
    return (_in_blocks(positions, block, fill) >= 0).all(-1)


def _bounds(x: Tensor, block: int, least: int | None) -> tuple[Tensor, Tensor]:
    """(rows, blocks) lowest and highest number in each block, of those that are at least `least`."""
    low, high = _in_blocks(x, block, _FAR), _in_blocks(x, block, -_FAR)
    if least is not None:
        low, high = low.masked_fill(low < least, _FAR), high.masked_fill(high < least, -_FAR)
    return low.amin(-1), high.amax(-1)
