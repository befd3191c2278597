"""From pre-tokens to ids: two tables of what was encoded before, and merging for what was not.

A few thousand words make up most of any text, so nearly all pre-tokens are found in the *quick* table, which is
small enough for the second-level cache and has one place for each hash. What it misses is looked up in *lines* of two
entries, as long as a cache line, fetched while other misses are being prepared. Loops over pre-tokens do the same for
each of them and branch on none, since what comes next in a text cannot be predicted.
"""

from groundup.tokenizer.fast.classify import ALL
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
    LINES,
    LINES_USED,
    LONG_TEXT_SIZE,
    LONG_TEXT_USED,
    LONGEST_KEPT,
    LONGS_USED,
    MISSES,
    NEEDS_LINES,
    NEEDS_LONG_TEXT,
    NEEDS_LONGS,
    NEEDS_SPILL,
    NUM_LINES,
    NUM_LONGS,
    OUTPUT_COUNT,
    OUTPUT_SIZE,
    PROBES,
    QUICK,
    QUICK_SHIFT,
    SCRATCH_PER_BYTE,
    SCRATCH_SIZE,
    SPILL_SIZE,
    SPILL_USED,
    UNRESOLVED,
    VALUES,
    WORDS_DONE,
)
from groundup.tokenizer.fast.encode_output import write
from groundup.tokenizer.fast.encode_tables import LINE_BYTES, MULTIPLIER, line_of, line_value, long_value
from groundup.tokenizer.fast.encode_tables import refill_lines as refill_lines
from groundup.tokenizer.fast.encode_tables import refill_longs as refill_longs
from groundup.tokenizer.fast.machine import (
    call,
    i32_at,
    i64,
    i64_at,
    kernel,
    load_u64,
    low_bytes,
    prefetch,
    select,
    u64,
    u64_at,
)

ENTRIES = ("encode_text", "refill_lines", "refill_longs")

_PROBE_BYTES = 32


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
        write(context, places, count)
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
        entry = u64_at(quick + i64(((key * MULTIPLIER) >> shift) << u64(4)))
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
        line = lines + i64(line_of(low, high) & mask) * LINE_BYTES
        prefetch(line)
        probe = u64_at(fields[PROBES] + number * _PROBE_BYTES)
        probe[0], probe[1], probe[2], probe[3] = low, high, u64(line), u64(word)


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
        target = select(found & (length <= quick_length), ((low * MULTIPLIER) >> shift) << u64(4), nowhere)
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
        values[word] = long_value(context, address, length)
    else:
        values[word] = line_value(context, low, high, address, length)
