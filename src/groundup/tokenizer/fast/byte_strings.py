"""Hashing and comparing bytes in memory."""

from groundup.tokenizer.fast.machine import i64, kernel, load_u64, low_bytes, u8_at, u64

_MULTIPLIER = u64(0x9E37_79B9_7F4A_7C15)


@kernel
def hash_bytes(address, length):
    """A 64-bit hash of bytes; up to 7 bytes behind them are read. `vocabulary_tables.hash_of` is the same in Python."""
    state = u64(length) * _MULTIPLIER
    place = i64(0)
    while place + 8 <= length:
        state = (state ^ load_u64(address + place)) * _MULTIPLIER
        state ^= state >> u64(29)
        place += 8
    if place < length:
        state = (state ^ low_bytes(load_u64(address + place), length - place)) * _MULTIPLIER
        state ^= state >> u64(29)
    return state ^ (state >> u64(32))


@kernel
def same_bytes(one, other, length):
    """Whether two places hold the same bytes."""
    a, b = u8_at(one), u8_at(other)
    for place in range(length):
        if a[place] != b[place]:
            return False
    return True
