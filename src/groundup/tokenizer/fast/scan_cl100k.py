r"""The GPT-4 pattern and its relatives (Llama-3, Qwen-2), 64 bytes at a time.

    '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]+|\s+(?!\S)|\s

Llama-3's has no `\s++$`, Qwen-2's has one number at a time. Besides what a byte and its neighbours are, three things
decide: whether line ends belong to the signs before them, whether white space has a line end further on in its run,
and whether a sign stands alone, so that it takes the letters behind it along. Each gets a map; contractions and groups
of digits are looked at one by one.
"""

from groundup.tokenizer.fast.classify import ONE, map_of, set_bit, take_chunk
from groundup.tokenizer.fast.context import (
    APOSTROPHE,
    CHUNK,
    DONE,
    HAS_APOSTROPHE,
    HAS_FOREIGN,
    LINE_END,
    NEEDS_STAGE,
    STAGE,
    STARTS,
    TAKEN,
    WORDS,
)
from groundup.tokenizer.fast.machine import i64, i64_at, kernel, trailing_zeros, u64
from groundup.tokenizer.fast.pieces import contraction
from groundup.tokenizer.fast.runs import (
    mark_before_line_ends,
    mark_digits,
    mark_prefixes,
    mark_runs,
    signs,
    white_beyond_the_end,
)
from groundup.tokenizer.fast.starts import flood_up, list_places, move_to_heads, shifted

ENTRIES = ("scan_cl100k",)


@kernel
def scan_cl100k(context):
    """Take a chunk of the text and list its pre-tokens (see context.py). DONE, or NEEDS_STAGE."""
    fields = i64_at(context)
    if take_chunk(context, False, True) == 0:
        return i64(NEEDS_STAGE)
    white_beyond_the_end(context)
    _mark_taken_line_ends(context)
    mark_before_line_ends(context)
    mark_prefixes(context)
    mark_runs(context)
    if fields[HAS_FOREIGN] != 0:
        move_to_heads(context)
    mark_digits(context)
    if fields[HAS_APOSTROPHE] != 0:
        _mark_contractions(context)
    fields[WORDS] = list_places(context)
    return i64(DONE)


@kernel
def _mark_taken_line_ends(context):
    r"""The line ends of `[^\s\p{L}\p{N}]+[\r\n]*`: those that follow a sign without a gap."""
    fields = i64_at(context)
    lines, taken = map_of(context, LINE_END), map_of(context, TAKEN)
    before = last = u64(0)
    for word in range((fields[CHUNK] + 63) >> 6):
        now = signs(context, word)
        begins = lines[word] & (shifted(now, before) | last)
        taken[word] = flood_up(begins, lines[word]) if begins != u64(0) else begins
        before, last = now, taken[word] >> u64(63)


@kernel
def _mark_contractions(context):
    fields = i64_at(context)
    apostrophe, starts = map_of(context, APOSTROPHE), map_of(context, STARTS)
    for word in range((fields[CHUNK] + 63) >> 6):
        candidates = apostrophe[word] & starts[word]
        while candidates != u64(0):
            place = (word << 6) + trailing_zeros(candidates)
            candidates &= candidates - ONE
            length = contraction(fields[STAGE] + place)
            if length != 0:
                set_bit(starts, place + length)
