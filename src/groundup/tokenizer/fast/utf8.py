"""Whether bytes are valid UTF-8."""

from groundup.tokenizer.fast.context import BLOCK_LENGTH, TEXT
from groundup.tokenizer.fast.machine import bytes_from, i64, i64_at, kernel, trailing_zeros, u8_at, u64


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
