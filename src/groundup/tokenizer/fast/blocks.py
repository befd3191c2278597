"""Blocks: text and, between, special tokens, as they stand in a file. Finds where one text ends and the next begins."""

from groundup.tokenizer.fast.byte_strings import same_bytes
from groundup.tokenizer.fast.context import (
    BEGINNINGS,
    BLOCK_LENGTH,
    FIRST_BYTES,
    FOUND,
    LENGTH,
    NEXT_TEXT,
    NUM_FIRST_BYTES,
    NUM_SPECIALS,
    POSITION,
    SPECIAL_BYTES,
    SPECIALS,
    TEXT,
)
from groundup.tokenizer.fast.machine import equal_bytes, i64, i64_at, kernel, trailing_zeros, u8_at, u16_at, u64

_SPECIAL_FIELDS = 3


@kernel
def next_text(fields):
    """Go to the text after the last special token, and find the next one; False at the end of the block."""
    start = fields[NEXT_TEXT]
    if start > fields[BLOCK_LENGTH]:
        return False
    fields[POSITION] = start
    place = start
    while place < fields[BLOCK_LENGTH]:
        place = _next_candidate(fields, place)
        number = _special_at(fields, place)
        if number >= 0:
            special = i64_at(fields[SPECIALS] + 8 * _SPECIAL_FIELDS * number)
            fields[LENGTH] = place
            fields[NEXT_TEXT] = place + special[1]
            fields[FOUND] = special[2]
            return True
        place += 1
    fields[LENGTH] = fields[BLOCK_LENGTH]
    fields[NEXT_TEXT] = fields[BLOCK_LENGTH] + 1
    fields[FOUND] = -1
    return True


@kernel
def _next_candidate(fields, place):
    """The next place with a byte that a special token begins with, or the end of the block, or beyond it."""
    first_bytes = i64_at(fields[FIRST_BYTES])
    while place < fields[BLOCK_LENGTH]:
        found = u64(0)
        for index in range(fields[NUM_FIRST_BYTES]):
            found |= equal_bytes(fields[TEXT] + place, first_bytes[index])
        if found != u64(0):
            return place + trailing_zeros(found)
        place += 64
    return place


@kernel
def _special_at(fields, place):
    """The number of the longest special token at a place of the block, or -1."""
    rest = fields[BLOCK_LENGTH] - place
    if u8_at(fields[BEGINNINGS])[u16_at(fields[TEXT] + place)[0]] == 0:
        return i64(-1)
    for number in range(fields[NUM_SPECIALS]):
        special = i64_at(fields[SPECIALS] + 8 * _SPECIAL_FIELDS * number)
        size = special[1]
        if size <= rest and same_bytes(fields[SPECIAL_BYTES] + special[0], fields[TEXT] + place, size):
            return i64(number)
    return i64(-1)
