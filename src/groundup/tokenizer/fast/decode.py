"""From ids to bytes: 16 bytes at a time whatever a token's length, the next token overwriting what was too much."""

from groundup.tokenizer.fast.decode_context import (
    ID_BYTES,
    IDS,
    NUM_IDS,
    OFFSETS,
    OUTPUT,
    OUTPUT_SIZE,
    ROW_BYTES,
    ROWS,
    TOKEN_LENGTHS,
    TOKEN_TEXT,
    VOCAB_SIZE,
)
from groundup.tokenizer.fast.machine import copy, copy_16, i32_at, i64, i64_at, kernel, u16_at, u32_at

ENTRIES = ("decoded_size", "decode")


@kernel
def decoded_size(context):
    """How many bytes the ids stand for; -1 - n when id number n has no token."""
    fields = i64_at(context)
    lengths, vocab_size = i32_at(fields[TOKEN_LENGTHS]), fields[VOCAB_SIZE]
    size = i64(0)
    for number in range(fields[NUM_IDS]):
        token = _id(context, number)
        if token < 0 or token >= vocab_size or lengths[token] < 0:
            return -1 - number
        size += i64(lengths[token])
    return size


@kernel
def decode(context):
    """Write the bytes of the ids to OUTPUT, which has exactly the room for them. All ids have a token."""
    fields = i64_at(context)
    lengths, rows = i32_at(fields[TOKEN_LENGTHS]), fields[ROWS]
    place, end = fields[OUTPUT], fields[OUTPUT] + fields[OUTPUT_SIZE]
    for number in range(fields[NUM_IDS]):
        token = _id(context, number)
        length = i64(lengths[token])
        if length <= ROW_BYTES and place + ROW_BYTES <= end:
            copy_16(place, rows + token * ROW_BYTES)
        else:
            copy(place, fields[TOKEN_TEXT] + i64_at(fields[OFFSETS])[token], length)
        place += length
    return place - fields[OUTPUT]


@kernel
def _id(context, number):
    fields = i64_at(context)
    if fields[ID_BYTES] == 2:
        return i64(u16_at(fields[IDS])[number])
    if fields[ID_BYTES] == 4:
        return i64(u32_at(fields[IDS])[number])
    return i64_at(fields[IDS])[number]
