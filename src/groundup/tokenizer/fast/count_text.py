"""The blocks of count.py: are they UTF-8, and where are the texts between their special tokens."""

from groundup.tokenizer.fast.context import LENGTH, POSITION, TEXT
from groundup.tokenizer.fast.count_context import (
    BLOCK_LENGTH,
    FIRST_BYTES,
    NEXT_TEXT,
    NUM_FIRST_BYTES,
    NUM_SPECIALS,
    SPECIAL_BYTES,
    SPECIALS,
)
from groundup.tokenizer.fast.count_tables import same_bytes
from groundup.tokenizer.fast.machine import i64, i64_at, kernel, trailing_zeros, u8_at, u64
from groundup.tokenizer.fast.machine_extra import bytes_from, equal_bytes


@kernel
def is_utf8(context):
    """1 when the block is valid UTF-8, else 0."""
    fields = i64_at(context)
    text, end = fields[TEXT], fields[BLOCK_LENGTH]
    place = i64(0)
    while place < end:
        beyond_ascii = bytes_from(text + place, 0x80)
        if beyond_ascii == u64(0):
            place += 64
            continue
        place += trailing_zeros(beyond_ascii)
        while place < end and u8_at(text)[place] >= 0x80:
            size = _sequence_size(text + place, end - place)
            if size == 0:
                return i64(0)
            place += size
    return i64(1)


@kernel
def _sequence_size(address, room):
    """Bytes of the UTF-8 sequence of a character beyond ASCII, or 0 (Unicode standard, table 3-7)."""
    byte = u8_at(address)
    first, second = byte[0], byte[1]
    if first < 0xC2 or first > 0xF4:
        return i64(0)
    size = i64(2) if first < 0xE0 else i64(3) if first < 0xF0 else i64(4)
    if size > room or second & 0xC0 != 0x80:
        return i64(0)
    if (first == 0xE0 and second < 0xA0) or (first == 0xED and second > 0x9F):
        return i64(0)
    if (first == 0xF0 and second < 0x90) or (first == 0xF4 and second > 0x8F):
        return i64(0)
    for index in range(2, size):
        if byte[index] & 0xC0 != 0x80:
            return i64(0)
    return size


@kernel
def next_text(fields):
    """Go to the text after the next special token; False at the end of the block."""
    start = fields[NEXT_TEXT]
    if start > fields[BLOCK_LENGTH]:
        return False
    fields[POSITION] = start
    place = start
    while place < fields[BLOCK_LENGTH]:
        place = _next_candidate(fields, place)
        size = _special_at(fields, place)
        if size > 0:
            fields[LENGTH] = place
            fields[NEXT_TEXT] = place + size
            return True
        place += 1
    fields[LENGTH] = fields[BLOCK_LENGTH]
    fields[NEXT_TEXT] = fields[BLOCK_LENGTH] + 1
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
    """The size of the longest special token at a place of the block, or 0."""
    rest = fields[BLOCK_LENGTH] - place
    for number in range(fields[NUM_SPECIALS]):
        start = i64_at(fields[SPECIALS])[2 * number]
        size = i64_at(fields[SPECIALS])[2 * number + 1]
        if size <= rest and same_bytes(fields[SPECIAL_BYTES] + start, fields[TEXT] + place, size):
            return size
    return i64(0)
