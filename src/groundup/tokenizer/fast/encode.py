"""From pre-tokens to ids: two tables of what was encoded before, and merging for what was not.

A few thousand words make up most of any text, so nearly all pre-tokens are found in the *quick* table, which is
small enough for the second-level cache and has one place for each hash. What it misses is looked up in *lines* of two
entries, as long as a cache line, fetched while other misses are being prepared. Loops over pre-tokens do the same for
each of them and branch on none, since what comes next in a text cannot be predicted.
"""

from groundup.tokenizer.fast.byte_strings import hash_bytes, same_bytes
from groundup.tokenizer.fast.classify import ALL, ONE
from groundup.tokenizer.fast.context import (
    DONE,
    HAS_ZERO,
    LENGTH,
    NEEDS_OUTPUT,
    NEEDS_SCRATCH,
    PLACES,
    POSITION,
    SCANNER,
    STAGE,
    WORDS,
)
from groundup.tokenizer.fast.encode_context import (
    BATCH,
    GROUP,
    LANE_BITS,
    LINES,
    LINES_USED,
    LONG_TEXT,
    LONG_TEXT_SIZE,
    LONG_TEXT_USED,
    LONGEST_KEPT,
    LONGS,
    LONGS_USED,
    MISSES,
    MOST_PROBES,
    NEEDS_LINES,
    NEEDS_LONG_TEXT,
    NEEDS_LONGS,
    NEEDS_SPILL,
    NUM_LINES,
    NUM_LONGS,
    OLD_SIZE,
    OLD_TABLE,
    OUTPUT,
    OUTPUT_COUNT,
    OUTPUT_SIZE,
    PROBES,
    QUICK,
    QUICK_SHIFT,
    SCRATCH,
    SCRATCH_PER_BYTE,
    SCRATCH_SIZE,
    SPILL,
    SPILL_SIZE,
    SPILL_USED,
    UNRESOLVED,
    VALUES,
    WORDS_DONE,
)
from groundup.tokenizer.fast.machine import (
    HAS_COMPRESS,
    call,
    copy,
    count_ones,
    i32_at,
    i64,
    i64_at,
    kernel,
    leading_zeros,
    load_u64,
    low_bytes,
    pack_lanes_16,
    pack_lanes_32,
    prefetch,
    select,
    store_u64,
    u16_at,
    u32_at,
    u64,
    u64_at,
)
from groundup.tokenizer.fast.merge import merge

ENTRIES = ("encode_text", "refill_lines", "refill_longs")

_MULTIPLIER = u64(0x9E37_79B9_7F4A_7C15)
_HIGH_MULTIPLIER = u64(0xC2B2_AE3D_27D4_EB4F)
# The lanes that hold the first ids of eight values, of four lanes each or of two.
_FIRST_OF_4, _FIRST_OF_2 = u64(0x1111_1111), u64(0x5555)
_LINE_BYTES, _PROBE_BYTES, _LONG_FIELDS = 64, 32, 4


@kernel
def encode_text(context):
    """Encode the text that the front is at, from where it is. DONE, or what must grow before this is called again."""
    fields = i64_at(context)
    while True:
        status = encode_words(context)
        if status != DONE:
            return status
        if fields[POSITION] >= fields[LENGTH]:
            return i64(DONE)
        status = call(fields[SCANNER], context)
        if status != DONE:
            return status
        fields[WORDS_DONE] = 0


@kernel
def encode_words(context):
    """Encode the pre-tokens of the present chunk from WORDS_DONE on, a batch at a time."""
    fields = i64_at(context)
    while fields[WORDS_DONE] < fields[WORDS]:
        first = fields[WORDS_DONE]
        count = min(fields[WORDS] - first, BATCH)
        status = _room(context, first, count)
        if status != DONE:
            return status
        places = fields[PLACES] + 4 * first
        missed = _look_up(context, places, count) if fields[HAS_ZERO] == 0 else _miss_all(context, count)
        _look_up_missed(context, places, missed)
        _write(context, places, count)
        fields[WORDS_DONE] = first + count
    return i64(DONE)


@kernel
def _room(context, first, count):
    """Whether the output, the tables and the scratch memory have room for whatever this batch may need."""
    fields = i64_at(context)
    places = i32_at(fields[PLACES])
    size = i64(places[first + count]) - i64(places[first])
    if fields[OUTPUT_SIZE] - fields[OUTPUT_COUNT] < size + 64:
        return i64(NEEDS_OUTPUT)
    if (fields[LINES_USED] + count) * 10 > fields[NUM_LINES] * 14:
        return i64(NEEDS_LINES)
    if (fields[LONGS_USED] + count) * 2 > fields[NUM_LONGS]:
        return i64(NEEDS_LONGS)
    if fields[LONG_TEXT_USED] + size + 64 > fields[LONG_TEXT_SIZE]:
        return i64(NEEDS_LONG_TEXT)
    if fields[SPILL_USED] + size + count + 64 > fields[SPILL_SIZE]:
        return i64(NEEDS_SPILL)
    if size * SCRATCH_PER_BYTE > fields[SCRATCH_SIZE]:
        longest = i64(0)
        for word in range(first, first + count):
            longest = max(longest, i64(places[word + 1]) - i64(places[word]))
        if longest * SCRATCH_PER_BYTE > fields[SCRATCH_SIZE]:
            return i64(NEEDS_SCRATCH)
    return i64(DONE)


@kernel
def _look_up(context, places_address, count):
    """Values from the quick table; the numbers of the pre-tokens that it does not have go to MISSES."""
    fields = i64_at(context)
    stage, quick, shift = fields[STAGE], fields[QUICK], u64(fields[QUICK_SHIFT])
    places, values, misses = i32_at(places_address), u64_at(fields[VALUES]), i32_at(fields[MISSES])
    missed = i64(0)
    start = i64(places[0])
    for word in range(count):
        end = i64(places[word + 1])
        length = end - start
        key = low_bytes(load_u64(stage + start), length)
        entry = u64_at(quick + i64(((key * _MULTIPLIER) >> shift) << u64(4)))
        values[word] = entry[1]
        misses[missed] = word
        missed += i64(entry[0] != key) | i64(length > 8)
        start = end
    return missed


@kernel
def _miss_all(context, count):
    """Text with zero bytes passes the quick table by: padded with zeros, its keys would be ambiguous."""
    misses = i32_at(i64_at(context)[MISSES])
    for word in range(count):
        misses[word] = word
    return count


@kernel
def _look_up_missed(context, places, missed):
    """Values of the pre-tokens in MISSES, from the lines or by merging."""
    for first in range(0, missed, GROUP):
        count = min(GROUP, missed - first)
        _prepare(context, places, first, count)
        for place in range(_probe(context, first, count)):
            _resolve(context, places, i64(i32_at(i64_at(context)[UNRESOLVED])[place]))


@kernel
def _prepare(context, places_address, first, count):
    """Make the keys of missed pre-tokens, and ask for the lines that they would be in."""
    fields = i64_at(context)
    stage, lines, mask = fields[STAGE], fields[LINES], u64(fields[NUM_LINES] - 1)
    places, misses = i32_at(places_address), i32_at(fields[MISSES])
    for number in range(count):
        word = i64(misses[first + number])
        start = i64(places[word])
        length = i64(places[word + 1]) - start
        low, high = load_u64(stage + start), load_u64(stage + start + 8)
        long = length > 8
        low = select(long, low, low_bytes(low, length))
        high = select(long, low_bytes(high, length - 8), u64(0)) | (u64(min(length, 16)) << u64(56))
        line = lines + i64(line_of(low, high) & mask) * _LINE_BYTES
        prefetch(line)
        probe = u64_at(fields[PROBES] + number * _PROBE_BYTES)
        probe[0], probe[1], probe[2], probe[3] = low, high, u64(line), u64(word)


@kernel
def line_of(low, high):
    """The hash of a key."""
    return ((low ^ (high * _HIGH_MULTIPLIER)) * _MULTIPLIER) >> u64(32)


@kernel
def _probe(context, first, count):
    """Compare prepared keys with their first lines, and put what is found where the next look at the quick table
    finds it. The numbers of the others go to UNRESOLVED; how many there are."""
    fields = i64_at(context)
    others = i32_at(fields[UNRESOLVED])
    values, quick, shift = u64_at(fields[VALUES]), fields[QUICK], u64(fields[QUICK_SHIFT])
    nowhere = u64(16) << (u64(64) - shift)  # an entry behind the table, for what may not be in it
    quick_length = i64(8) if fields[HAS_ZERO] == 0 else i64(0)
    left = i64(0)
    for number in range(count):
        probe = u64_at(fields[PROBES] + number * _PROBE_BYTES)
        low, high, address, word = probe[0], probe[1], probe[2], probe[3]
        line = u64_at(i64(address))
        in_first = (line[0] == low) & (line[1] == high)
        in_second = (line[4] == low) & (line[5] == high)
        value = select(in_first, line[2], line[6])
        length = i64(high >> u64(56))
        found = (in_first | in_second) & (length <= 15)
        values[i64(word)] = value
        target = select(found & (length <= quick_length), ((low * _MULTIPLIER) >> shift) << u64(4), nowhere)
        entry = u64_at(quick + i64(target))
        entry[0], entry[1] = low, value
        others[left] = number
        left += i64(not found)
    return left


@kernel
def _resolve(context, places_address, number):
    """Find the value of a pre-token that was not in its first line: long, further on, or new."""
    fields = i64_at(context)
    probe = u64_at(fields[PROBES] + number * _PROBE_BYTES)
    low, high, word = probe[0], probe[1], i64(probe[3])
    places, values = i32_at(places_address), u64_at(fields[VALUES])
    address, length = fields[STAGE] + i64(places[word]), i64(places[word + 1]) - i64(places[word])
    if length > LONGEST_KEPT:
        values[word] = ALL
    elif length > 15:
        values[word] = _long_value(context, address, length)
    else:
        values[word] = _line_value(context, low, high, address, length)


@kernel
def _line_value(context, low, high, address, length):
    """The value of a pre-token of up to 15 bytes, from the lines or new.

    Words can be made whose hashes collide: after MOST_PROBES lines the value is that of one merged when written.
    """
    fields = i64_at(context)
    mask = fields[NUM_LINES] - 1
    number = i64(line_of(low, high)) & mask
    for _ in range(MOST_PROBES):
        line = u64_at(fields[LINES] + number * _LINE_BYTES)
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
def _long_value(context, address, length):
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
        old = u64_at(fields[OLD_TABLE] + place * (_LINE_BYTES // 2))
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
        line = u64_at(fields[LINES] + number * _LINE_BYTES)
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


@kernel
def _write(context, places, count):
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
