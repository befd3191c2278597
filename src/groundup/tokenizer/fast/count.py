"""Counting pre-tokens: how often each different one occurs, in hash tables by length.

Nine words of ten have at most 8 bytes and stand in their home slot already. These are counted in a loop without
branches, which lists all others. The others then go in batches: first the memory of their slots is asked for, then
they are counted.

A word of at most 8 bytes is its own key, filled up with zeros: a word that ends in a zero byte would look like a
shorter one, so it goes to the table whose keys hold the length.
"""

from groundup.tokenizer.fast.context import HAS_ZERO, LENGTH, PLACES, POSITION, SCANNER, STAGE, TEXT
from groundup.tokenizer.fast.context import WORDS as WORDS_OF_CHUNK
from groundup.tokenizer.fast.count_context import (
    ARENA,
    ARENA_SIZE,
    ARENA_USED,
    BATCH,
    BLOCK_LENGTH,
    DONE,
    FIRST_BYTES,
    HUGE,
    HUGE_BITS,
    HUGE_SLOT,
    LONG,
    LONG_BITS,
    LONG_SLOT,
    MISSES,
    NEEDED,
    NEEDS_ARENA,
    NEEDS_HUGE,
    NEEDS_LONG,
    NEEDS_SHORT,
    NEXT_MISS,
    NEXT_TEXT,
    NEXT_WORD,
    NUM_FIRST_BYTES,
    NUM_HUGE,
    NUM_LONG,
    NUM_MISSES,
    NUM_SHORT,
    NUM_SPECIALS,
    OLD_BITS,
    OLD_TABLE,
    SHORT,
    SHORT_BITS,
    SHORT_SLOT,
    SPECIAL_BYTES,
    SPECIALS,
    WORD_BYTES,
    WORD_COUNTS,
    WORD_ENDS,
    WORD_TEXT,
    WORDS_LISTED,
)
from groundup.tokenizer.fast.machine import (
    call,
    copy,
    i32_at,
    i64,
    i64_at,
    kernel,
    leading_zeros,
    load_u64,
    low_bytes,
    prefetch,
    trailing_zeros,
    u8_at,
    u64,
    u64_at,
)
from groundup.tokenizer.fast.machine_extra import bytes_from, equal_bytes

ENTRIES = ("is_utf8", "count_block", "add_words", "list_words", "refill_short", "refill_long", "refill_huge")

_FACTOR, _OTHER_FACTOR = u64(0x9E3779B97F4A7C15), u64(0xC2B2AE3D27D4EB4F)  # odd, with bits in no order


# --- the block: is it UTF-8, and where are the texts between its special tokens


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
def _next_text(fields):
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
        if size <= rest and _same_bytes(fields[SPECIAL_BYTES] + start, fields[TEXT] + place, size):
            return size
    return i64(0)


@kernel
def _same_bytes(address, other, size):
    one, two = u8_at(address), u8_at(other)
    index = i64(0)
    while index < size and one[index] == two[index]:
        index += 1
    return index == size


# --- counting


@kernel
def count_block(context):
    """Count the pre-tokens between the special tokens of a block. Called again with more room until it is DONE."""
    fields = i64_at(context)
    while True:
        status = _count_misses(fields)
        if status != DONE:
            return status
        if fields[POSITION] >= fields[LENGTH]:
            if not _next_text(fields):
                return i64(DONE)
            continue
        status = call(fields[SCANNER], context)
        if status != DONE:
            return status
        if fields[HAS_ZERO] != 0:
            _list_all(fields)
        else:
            _count_at_home(fields)


@kernel
def _count_at_home(fields):
    """Count the short words that stand in their home slot, and list the others."""
    places, misses = i32_at(fields[PLACES]), u64_at(fields[MISSES])
    stage, table, shift = fields[STAGE], fields[SHORT], u64(64 - fields[SHORT_BITS])
    num_misses = i64(0)
    start = i64(places[0])
    for word in range(fields[WORDS_OF_CHUNK]):
        end = i64(places[word + 1])
        size = end - start
        key = low_bytes(load_u64(stage + start), size)  # of a longer word it may be anything
        slot = table + (i64((key * _FACTOR) >> shift) << 4)
        hit = (u64_at(slot)[0] == key) & (size <= 8)
        i64_at(slot)[1] += i64(hit)
        misses[num_misses] = u64(start) | (u64(size) << u64(32))
        num_misses += 1 - i64(hit)
        start = end
    fields[NUM_MISSES] = num_misses
    fields[NEXT_MISS] = 0


@kernel
def _list_all(fields):
    """List all words, because some may end in a zero byte."""
    places, misses = i32_at(fields[PLACES]), u64_at(fields[MISSES])
    for word in range(fields[WORDS_OF_CHUNK]):
        start, end = i64(places[word]), i64(places[word + 1])
        misses[word] = u64(start) | (u64(end - start) << u64(32))
    fields[NUM_MISSES] = fields[WORDS_OF_CHUNK]
    fields[NEXT_MISS] = 0


@kernel
def _count_misses(fields):
    """Count the words that are listed."""
    misses = i64_at(fields[MISSES])
    while fields[NEXT_MISS] < fields[NUM_MISSES]:
        first, end = fields[NEXT_MISS], min(fields[NEXT_MISS] + BATCH, fields[NUM_MISSES])
        arena_bytes = i64(0)
        for index in range(first, end):
            size = misses[index] >> 32
            _prefetch_slot(fields, fields[STAGE] + (misses[index] & 0xFFFFFFFF), size)
            arena_bytes += size if size > 15 else 0
        status = _missing_room(fields, arena_bytes)
        if status != DONE:
            return status
        for index in range(first, end):
            _add(fields, fields[STAGE] + (misses[index] & 0xFFFFFFFF), misses[index] >> 32, 1)
        fields[NEXT_MISS] = end
    return i64(DONE)


@kernel
def add_words(context):
    """Add the words of WORD_TEXT with their counts. Called again with more room until it is DONE."""
    fields = i64_at(context)
    ends, counts = i64_at(fields[WORD_ENDS]), i64_at(fields[WORD_COUNTS])
    while fields[NEXT_WORD] < fields[WORDS_LISTED]:
        first, end = fields[NEXT_WORD], min(fields[NEXT_WORD] + BATCH, fields[WORDS_LISTED])
        before_batch = i64(256) if first == 0 else ends[first - 1] + 1
        start = before_batch
        for word in range(first, end):
            _prefetch_slot(fields, fields[WORD_TEXT] + start, ends[word] - start)
            start = ends[word] + 1
        status = _missing_room(fields, start - before_batch)
        if status != DONE:
            return status
        start = before_batch
        for word in range(first, end):
            _add(fields, fields[WORD_TEXT] + start, ends[word] - start, counts[word])
            start = ends[word] + 1
        fields[NEXT_WORD] = end
    return i64(DONE)


@kernel
def _missing_room(fields, arena_bytes):
    """Which table is short of room for a batch; DONE when none is."""
    if _is_full(fields[NUM_SHORT], fields[SHORT_BITS]):
        return i64(NEEDS_SHORT)
    if _is_full(fields[NUM_LONG], fields[LONG_BITS]):
        return i64(NEEDS_LONG)
    if _is_full(fields[NUM_HUGE], fields[HUGE_BITS]):
        return i64(NEEDS_HUGE)
    fields[NEEDED] = fields[ARENA_USED] + arena_bytes
    return i64(NEEDS_ARENA) if fields[NEEDED] > fields[ARENA_SIZE] else i64(DONE)


@kernel
def _is_full(used, bits):
    """Whether another batch might fill more than six tenths of a table."""
    return 10 * (used + BATCH) > 6 * (i64(1) << bits)


# --- the tables


@kernel
def _low(address, size):
    """The first 8 bytes of a word as a number; zeros behind its end."""
    return low_bytes(load_u64(address), min(size, 8))


@kernel
def _high(address, size):
    """The bytes of a word from the ninth on, at most seven, and its size on top."""
    rest = low_bytes(load_u64(address + 8), size - 8) if size > 8 else u64(0)
    return rest | (u64(size) << u64(56))


@kernel
def _is_short(low, size):
    return size <= 8 and (low >> u64(8 * size - 8)) != u64(0)


@kernel
def _home(key, bits):
    return i64((key * _FACTOR) >> u64(64 - bits))


@kernel
def _mix(low, high):
    return low ^ (high * _OTHER_FACTOR)


@kernel
def _prefetch_slot(fields, address, size):
    low = _low(address, size)
    if size <= 8:
        prefetch(fields[SHORT] + _home(low, fields[SHORT_BITS]) * SHORT_SLOT * 8)
    elif size <= 15:
        prefetch(fields[LONG] + _home(_mix(low, _high(address, size)), fields[LONG_BITS]) * LONG_SLOT * 8)


@kernel
def _add(fields, address, size, count):
    """Add to the count of a word. There must be room for it."""
    if size == 0:
        return
    low = _low(address, size)
    if _is_short(low, size):
        new = _add_short(fields, low, count)
    elif size <= 15:
        new = _add_long(fields, low, _high(address, size), count)
    else:
        new = _add_huge(fields, address, size, count)
    if new:
        fields[WORD_BYTES] += size


@kernel
def _add_short(fields, key, count):
    slot = _home(key, fields[SHORT_BITS])
    mask = (i64(1) << fields[SHORT_BITS]) - 1
    while True:
        entry = fields[SHORT] + slot * SHORT_SLOT * 8
        if u64_at(entry)[0] == key:
            i64_at(entry)[1] += count
            return False
        if u64_at(entry)[0] == u64(0):
            u64_at(entry)[0] = key
            i64_at(entry)[1] = count
            fields[NUM_SHORT] += 1
            return True
        slot = (slot + 1) & mask


@kernel
def _add_long(fields, low, high, count):
    slot = _home(_mix(low, high), fields[LONG_BITS])
    mask = (i64(1) << fields[LONG_BITS]) - 1
    while True:
        entry = u64_at(fields[LONG] + slot * LONG_SLOT * 8)
        if entry[0] == low and entry[1] == high:
            entry[2] += u64(count)
            return False
        if entry[1] == u64(0):
            entry[0] = low
            entry[1] = high
            entry[2] = u64(count)
            fields[NUM_LONG] += 1
            return True
        slot = (slot + 1) & mask


@kernel
def _add_huge(fields, address, size, count):
    digest = i64(_hash(address, size))
    slot = _huge_slot(fields, digest, address, size)
    entry = i64_at(fields[HUGE] + slot * HUGE_SLOT * 8)
    if entry[2] != 0:
        entry[3] += count
        return False
    copy(fields[ARENA] + fields[ARENA_USED], address, size)
    entry[0] = digest
    entry[1] = fields[ARENA_USED]
    entry[2] = size
    entry[3] = count
    fields[ARENA_USED] += size
    fields[NUM_HUGE] += 1
    return True


@kernel
def _huge_slot(fields, digest, address, size):
    """The slot of a long word, or the empty one where it belongs."""
    mask = (i64(1) << fields[HUGE_BITS]) - 1
    slot = digest & mask
    while True:
        entry = i64_at(fields[HUGE] + slot * HUGE_SLOT * 8)
        if entry[2] == 0:
            return slot
        if entry[0] == digest and entry[2] == size and _same_bytes(fields[ARENA] + entry[1], address, size):
            return slot
        slot = (slot + 1) & mask


@kernel
def _hash(address, size):
    """Of the bytes of a word of 8 bytes or more; the last eight overlap the ones before."""
    digest = u64(size)
    place = i64(0)
    while place < size:
        digest = (digest ^ load_u64(address + min(place, size - 8))) * _FACTOR
        digest ^= digest >> u64(29)
        place += 8
    return digest ^ (digest >> u64(32))


# --- tables that grow, and what they hold in the end


@kernel
def refill_short(context):
    """Move the words of OLD_TABLE to a new table."""
    fields = i64_at(context)
    fields[NUM_SHORT] = 0
    for slot in range(i64(1) << fields[OLD_BITS]):
        entry = fields[OLD_TABLE] + slot * SHORT_SLOT * 8
        if u64_at(entry)[0] != u64(0):
            _add_short(fields, u64_at(entry)[0], i64_at(entry)[1])
    return i64(DONE)


@kernel
def refill_long(context):
    """Move the words of OLD_TABLE to a new table."""
    fields = i64_at(context)
    fields[NUM_LONG] = 0
    for slot in range(i64(1) << fields[OLD_BITS]):
        entry = u64_at(fields[OLD_TABLE] + slot * LONG_SLOT * 8)
        if entry[1] != u64(0):
            _add_long(fields, entry[0], entry[1], i64(entry[2]))
    return i64(DONE)


@kernel
def refill_huge(context):
    """Move the words of OLD_TABLE to a new table; their bytes stay where they are."""
    fields = i64_at(context)
    mask = (i64(1) << fields[HUGE_BITS]) - 1
    for old_slot in range(i64(1) << fields[OLD_BITS]):
        old = fields[OLD_TABLE] + old_slot * HUGE_SLOT * 8
        if i64_at(old)[2] != 0:
            slot = i64_at(old)[0] & mask
            while i64_at(fields[HUGE] + slot * HUGE_SLOT * 8)[2] != 0:
                slot = (slot + 1) & mask
            copy(fields[HUGE] + slot * HUGE_SLOT * 8, old, HUGE_SLOT * 8)
    return i64(DONE)


@kernel
def list_words(context):
    """Write all words, each followed by a zero, and their ends and counts."""
    fields = i64_at(context)
    fields[WORDS_LISTED] = 0
    place = i64(256)
    for slot in range(i64(1) << fields[SHORT_BITS]):
        entry = fields[SHORT] + slot * SHORT_SLOT * 8
        if u64_at(entry)[0] != u64(0):
            size = 8 - (leading_zeros(u64_at(entry)[0]) >> 3)
            place = _list(fields, place, entry, size, i64_at(entry)[1])
    for slot in range(i64(1) << fields[LONG_BITS]):
        entry = fields[LONG] + slot * LONG_SLOT * 8
        if u64_at(entry)[1] != u64(0):
            size = i64(u64_at(entry)[1] >> u64(56))
            place = _list(fields, place, entry, size, i64_at(entry)[2])
    for slot in range(i64(1) << fields[HUGE_BITS]):
        entry = i64_at(fields[HUGE] + slot * HUGE_SLOT * 8)
        if entry[2] != 0:
            place = _list(fields, place, fields[ARENA] + entry[1], entry[2], entry[3])
    return i64(DONE)


@kernel
def _list(fields, place, address, size, count):
    """Write a word to `place`; returns where the next one begins."""
    copy(fields[WORD_TEXT] + place, address, size)
    u8_at(fields[WORD_TEXT])[place + size] = 0
    number = fields[WORDS_LISTED]
    i64_at(fields[WORD_ENDS])[number] = place + size
    i64_at(fields[WORD_COUNTS])[number] = count
    fields[WORDS_LISTED] = number + 1
    return place + size + 1
