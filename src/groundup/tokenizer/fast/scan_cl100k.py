r"""The GPT-4 pattern and its relatives (Llama-3, Qwen-2), one pre-token after the other.

    '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]+|\s+(?!\S)|\s

Llama-3's has no `\s++$`, Qwen-2's has one number at a time. The class of a pre-token's first character leaves one or
two alternatives; a run of a class is found by counting the ones in a bit map.
"""

from groundup.tokenizer.fast.classify import bit, map_of, run_end, take_chunk
from groundup.tokenizer.fast.context import (
    ANY_LETTER,
    CHUNK,
    DONE,
    MAX_DIGITS,
    NEEDS_STAGE,
    NUMBER,
    OTHER,
    PLACES,
    STAGE,
    WORDS,
)
from groundup.tokenizer.fast.machine import i32_at, i64, i64_at, kernel, u8_at
from groundup.tokenizer.fast.pieces import (
    contraction,
    digits_end,
    line_ends,
    mark_others,
    next_character,
    white_end,
)

ENTRIES = ("scan_cl100k",)


@kernel
def scan_cl100k(context):
    """Take a chunk of the text and list its pre-tokens (see context.py). DONE, or NEEDS_STAGE."""
    fields = i64_at(context)
    if take_chunk(context, False) == 0:
        return i64(NEEDS_STAGE)
    mark_others(context)
    places, size = i32_at(fields[PLACES]), fields[CHUNK]
    place = count = i64(0)
    while place < size:
        places[count] = place
        count += 1
        place = _end(context, place)
    places[count] = size
    fields[WORDS] = count
    return i64(DONE)


@kernel
def _end(context, place):
    """Where the pre-token ends that begins here."""
    fields = i64_at(context)
    letters, others = map_of(context, ANY_LETTER), map_of(context, OTHER)
    if bit(letters, place):
        return run_end(letters, place)
    if bit(map_of(context, NUMBER), place):
        return digits_end(context, place, fields[MAX_DIGITS])
    text = u8_at(fields[STAGE])
    following = next_character(context, place)
    if bit(others, place):
        if text[place] == ord("'"):
            length = contraction(fields[STAGE] + place)
            if length != 0:
                return place + length
        if bit(letters, following):
            return run_end(letters, following)
        return line_ends(context, run_end(others, place), False)
    if bit(letters, following) and text[place] != ord("\n") and text[place] != ord("\r"):
        return run_end(letters, following)
    if text[place] == ord(" ") and bit(others, following):
        return line_ends(context, run_end(others, following), False)
    return white_end(context, place)
