"""The tables of pre-tokens that were encoded before: by what a pre-token is found, and how a new one comes in.

lines    two entries of up to 15 bytes each, as long as a cache line: bytes and their number, value
longs    16 to LONGEST_KEPT bytes: hash, length, where the bytes are kept, value
value    the ids themselves, in lanes of 16 or 32 bits; of many, where SPILL has them; ALL: not kept, merge again
"""

from groundup.tokenizer.fast.byte_strings import hash_bytes, same_bytes
from groundup.tokenizer.fast.classify import ALL, ONE
from groundup.tokenizer.fast.context import DONE
from groundup.tokenizer.fast.encode_context import (
    LANE_BITS,
    LINES,
    LINES_USED,
    LONG_TEXT,
    LONG_TEXT_USED,
    LONGS,
    LONGS_USED,
    MOST_PROBES,
    NUM_LINES,
    NUM_LONGS,
    OLD_SIZE,
    OLD_TABLE,
    SCRATCH,
    SPILL,
    SPILL_USED,
)
from groundup.tokenizer.fast.machine import copy, i64, i64_at, kernel, u32_at, u64, u64_at
from groundup.tokenizer.fast.merge import merge

MULTIPLIER = u64(0x9E37_79B9_7F4A_7C15)
LINE_BYTES = 64
_HIGH_MULTIPLIER = u64(0xC2B2_AE3D_27D4_EB4F)
_LONG_FIELDS = 4


@kernel
def line_of(low, high):
    """The hash of a key."""
    return ((low ^ (high * _HIGH_MULTIPLIER)) * MULTIPLIER) >> u64(32)


@kernel
def line_value(context, low, high, address, length):
    """The value of a pre-token of up to 15 bytes, from the lines or new.

    Words can be made whose hashes collide: after MOST_PROBES lines the value is that of one merged when written.
    """
    fields = i64_at(context)
    mask = fields[NUM_LINES] - 1
    number = i64(line_of(low, high)) & mask
    for _ in range(MOST_PROBES):
        line = u64_at(fields[LINES] + number * LINE_BYTES)
        for entry in (0, 4):
            if line[entry] == low and line[entry + 1] == high:
                return line[entry + 2]
            if line[entry + 1] == u64(0):
                line[entry], line[entry + 1] = low, high
                line[entry + 2] = _encode_new(context, address, length)
                fields[LINES_USED] += 1
                return line[entry + 2]
        number = (number + 1) & mask
    return ALL


@kernel
def _encode_new(context, address, length):
    """Merge a pre-token and make its ids a value, with the help of SPILL if there are many."""
    fields = i64_at(context)
    count = merge(context, address, length)
    ids = u32_at(fields[SCRATCH])
    lane_bits = fields[LANE_BITS]
    if count * lane_bits <= 64:  # none at all, as of bytes without a token, looks like a long one and is found out then
        value = ALL
        for place in range(count - 1, -1, -1):
            value = (value << u64(lane_bits)) | u64(ids[place])
        return value
    place = fields[SPILL_USED]
    u32_at(fields[SPILL])[place] = count
    copy(fields[SPILL] + 4 * (place + 1), fields[SCRATCH], 4 * count)
    fields[SPILL_USED] = place + 1 + count
    return (u64(place) << u64(lane_bits)) | ((ONE << u64(lane_bits)) - ONE)


@kernel
def long_value(context, address, length):
    """The value of a pre-token of 16 to LONGEST_KEPT bytes, from the table of long ones or new."""
    fields = i64_at(context)
    mask = fields[NUM_LONGS] - 1
    hashed = hash_bytes(address, length) | u64(1)
    slot = i64(hashed >> u64(16)) & mask
    probes = i64(0)
    while True:
        row = u64_at(fields[LONGS] + slot * 8 * _LONG_FIELDS)
        if row[0] == u64(0):
            break
        probes += 1
        if probes > MOST_PROBES:
            return ALL
        if row[0] == hashed and i64(row[1]) == length and same_bytes(fields[LONG_TEXT] + i64(row[2]), address, length):
            return row[3]
        slot = (slot + 1) & mask
    value = _encode_new(context, address, length)
    copy(fields[LONG_TEXT] + fields[LONG_TEXT_USED], address, length)
    row[0], row[1], row[2], row[3] = hashed, u64(length), u64(fields[LONG_TEXT_USED]), value
    fields[LONG_TEXT_USED] += length
    fields[LONGS_USED] += 1
    return value


@kernel
def refill_lines(context):
    """Move the pre-tokens of OLD_TABLE to the lines, which are empty and more."""
    fields = i64_at(context)
    fields[LINES_USED] = 0
    for place in range(2 * fields[OLD_SIZE]):
        old = u64_at(fields[OLD_TABLE] + place * (LINE_BYTES // 2))
        if old[1] != u64(0):
            _put_into_lines(context, old)
    return i64(DONE)


@kernel
def _put_into_lines(context, old):
    """Put an entry into the first free place, or forget it."""
    fields = i64_at(context)
    mask = fields[NUM_LINES] - 1
    number = i64(line_of(old[0], old[1])) & mask
    for _ in range(MOST_PROBES):
        line = u64_at(fields[LINES] + number * LINE_BYTES)
        for entry in (0, 4):
            if line[entry + 1] == u64(0):
                line[entry], line[entry + 1], line[entry + 2] = old[0], old[1], old[2]
                fields[LINES_USED] += 1
                return
        number = (number + 1) & mask


@kernel
def refill_longs(context):
    """Move the pre-tokens of OLD_TABLE to the table of long ones, which is empty and larger."""
    fields = i64_at(context)
    mask = fields[NUM_LONGS] - 1
    for place in range(fields[OLD_SIZE]):
        old = u64_at(fields[OLD_TABLE] + place * 8 * _LONG_FIELDS)
        if old[0] != u64(0):
            slot = i64(old[0] >> u64(16)) & mask
            while u64_at(fields[LONGS] + slot * 8 * _LONG_FIELDS)[0] != u64(0):
                slot = (slot + 1) & mask
            copy(
                fields[LONGS] + slot * 8 * _LONG_FIELDS, fields[OLD_TABLE] + place * 8 * _LONG_FIELDS, 8 * _LONG_FIELDS
            )
    return i64(DONE)
