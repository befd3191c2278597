"""Which tokens a masked language model has to guess, and what stands in their place.

The draw is a function of a seed and the row itself, and not of a generator's state, so it is the same in any number of
micro-batches, on any rank and device, and after a resume; and other windows of a text get other masks.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class Masked(NamedTuple):
    """Rows with gaps. `places` are the columns to be guessed; those of a short row are filled up by unchosen ones."""

    tokens: Int[Tensor, "batch seq"]
    places: Int[Tensor, "batch most"]
    chosen: Bool[Tensor, "batch most"]


def mask_tokens(
    tokens: Int[Tensor, "batch seq"],
    eligible: Bool[Tensor, "batch seq"],
    mask_id: int,
    vocab_size: int,
    share: float = 0.15,
    seed: int = 0,
    row_seeds: Int[Tensor, " batch"] | None = None,
) -> Masked:
    """Choose a share of each row's eligible tokens (rounded, one at least), and hide them.

    Of the chosen, 8 in 10 become `mask_id`, 1 in 10 a token of the vocabulary by chance, and 1 in 10 stays as it is,
    so that a model cannot know which tokens of its input to believe. Devlin et al. 2018, section 3.1 and appendix A.1
    (arXiv:1810.04805). Rows of the same tokens have the same gaps, unless their `row_seeds` differ.
    """
    keys = _row_keys(tokens, seed, row_seeds)
    most = min(max(1, round(share * tokens.shape[1])), tokens.shape[1])
    last = torch.iinfo(torch.int64).max
    places = random_bits(keys, tokens.shape[1], 0).masked_fill(~eligible, last).topk(most, 1, largest=False).indices
    available = eligible.sum(1, keepdim=True)
    wanted = (share * available).round().clamp(min=1).minimum(available)
    chosen = torch.arange(most, device=tokens.device) < wanted
    kind = random_bits(keys, most, 1) % 10
    old, other = tokens.gather(1, places), random_bits(keys, most, 2) % vocab_size
    new = torch.where(kind < 8, mask_id, torch.where(kind == 8, other, old))
    return Masked(tokens.scatter(1, places, torch.where(chosen, new, old)), places, chosen)


def random_bits(keys: Int[Tensor, " batch"], count: int, stream: int) -> Int[Tensor, "batch count"]:
    """Numbers from 0 to 2^63 - 1, each a function of its row's key, its column and the stream.

    SplitMix64 read at given counters: Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15.
    """
    columns = torch.arange(1, count + 1, device=keys.device)
    return _mix(_mix(keys + _signed((stream + 1) * GOLDEN))[:, None] + columns * _signed(GOLDEN)) & (2**63 - 1)


def _row_keys(tokens: Tensor, seed: int, row_seeds: Tensor | None) -> Int[Tensor, " batch"]:
    columns = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    keys = _mix(_mix(columns * _signed(GOLDEN)) + tokens.long()).sum(1) + _signed(seed)
    return keys if row_seeds is None else _mix(keys) + row_seeds


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's last steps, in 64-bit integers that wrap."""
    for shift, factor in MIXERS:
        logical = (x >> shift) & ((1 << (64 - shift)) - 1)  # torch's shift copies the sign
        x = (x ^ logical) * _signed(factor)
    return x


def _signed(number: int) -> int:
    """The 64-bit integer of the same bits, as torch has no unsigned ones to calculate with."""
    return (number + 2**63) % 2**64 - 2**63
