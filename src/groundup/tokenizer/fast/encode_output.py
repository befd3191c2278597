"""From the values of a batch to ids in the output, of 16 bits or 32.

A value holds up to four ids (or two) in lanes, the rest of it ones. Eight values at a time become ids by leaving out
the lanes that are ones; a value of more ids says where they are.
"""

from groundup.tokenizer.fast.classify import ALL
from groundup.tokenizer.fast.context import STAGE
from groundup.tokenizer.fast.encode_context import LANE_BITS, OUTPUT, OUTPUT_COUNT, SCRATCH, SPILL, VALUES
from groundup.tokenizer.fast.machine import (
    HAS_COMPRESS,
    copy,
    count_ones,
    i32_at,
    i64,
    i64_at,
    kernel,
    leading_zeros,
    pack_lanes_16,
    pack_lanes_32,
    store_u64,
    u16_at,
    u32_at,
    u64,
    u64_at,
)
from groundup.tokenizer.fast.merge import merge

# The lanes that hold the first ids of eight values, of four lanes each or of two.
_FIRST_OF_4, _FIRST_OF_2 = u64(0x1111_1111), u64(0x5555)


@kernel
def write(context, places, count):
    """The ids of a batch, to the output."""
    fields = i64_at(context)
    if fields[LANE_BITS] == 16:
        fields[OUTPUT_COUNT] = _write_narrow(context, places, count)
    else:
        fields[OUTPUT_COUNT] = _write_wide(context, places, count)


@kernel
def _write_narrow(context, places, count):
    """Ids of 16 bits. Eight pre-tokens at a time, where the processor can do that and none has many ids."""
    fields = i64_at(context)
    written, word = fields[OUTPUT_COUNT], i64(0)
    while HAS_COMPRESS and word + 8 <= count:
        present = pack_lanes_16(fields[VALUES] + 8 * word, fields[OUTPUT] + 2 * written)
        if present & _FIRST_OF_4 == _FIRST_OF_4:
            written += count_ones(present)
        else:
            written = _write_narrow_one_by_one(context, places, word, word + 8, written)
        word += 8
    return _write_narrow_one_by_one(context, places, word, count, written)


@kernel
def _write_narrow_one_by_one(context, places, word, end, written):
    fields = i64_at(context)
    values, output, lanes = u64_at(fields[VALUES]), u16_at(fields[OUTPUT]), fields[OUTPUT]
    while word < end:
        value = values[word]
        store_u64(lanes + 2 * written, value)
        ids = 4 - (leading_zeros(~value) >> 4)
        if value & u64(0xFFFF) == u64(0xFFFF):
            ids, source = _many_ids(context, value, places, word)
            many = u32_at(source)
            for number in range(ids):
                output[written + number] = many[number]
        written += ids
        word += 1
    return written


@kernel
def _write_wide(context, places, count):
    """Ids of 32 bits, in the same two ways."""
    fields = i64_at(context)
    written, word = fields[OUTPUT_COUNT], i64(0)
    while HAS_COMPRESS and word + 8 <= count:
        present = pack_lanes_32(fields[VALUES] + 8 * word, fields[OUTPUT] + 4 * written)
        if present & _FIRST_OF_2 == _FIRST_OF_2:
            written += count_ones(present)
        else:
            written = _write_wide_one_by_one(context, places, word, word + 8, written)
        word += 8
    return _write_wide_one_by_one(context, places, word, count, written)


@kernel
def _write_wide_one_by_one(context, places, word, end, written):
    fields = i64_at(context)
    values, lanes = u64_at(fields[VALUES]), fields[OUTPUT]
    while word < end:
        value = values[word]
        store_u64(lanes + 4 * written, value)
        ids = 2 - (leading_zeros(~value) >> 5)
        if value & u64(0xFFFF_FFFF) == u64(0xFFFF_FFFF):
            ids, source = _many_ids(context, value, places, word)
            copy(lanes + 4 * written, source, 4 * ids)
        written += ids
        word += 1
    return written


@kernel
def _many_ids(context, value, places_address, word):
    """How many ids a value stands for that does not hold them itself, and their address (uint32)."""
    fields = i64_at(context)
    if value == ALL:
        places = i32_at(places_address)
        start = i64(places[word])
        return merge(context, fields[STAGE] + start, i64(places[word + 1]) - start), fields[SCRATCH]
    place = fields[SPILL] + 4 * i64(value >> u64(fields[LANE_BITS]))
    return i64(u32_at(place)[0]), place + 4
