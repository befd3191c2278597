"""The tables of count.py: one for words of at most 8 bytes, one for at most 15, one for longer words.

A word of at most 8 bytes is its own key, filled up with zeros: a word that ends in a zero byte would look like a
shorter one, so it goes to the table whose keys hold the length.
"""

from groundup.tokenizer.fast.byte_strings import hash_bytes, same_bytes
from groundup.tokenizer.fast.count_context import (
    ARENA,
    ARENA_SIZE,
    ARENA_USED,
    BATCH,
    DONE,
    HUGE,
    HUGE_BITS,
    HUGE_SLOT,
    LONG,
    LONG_BITS,
    LONG_SLOT,
    NEEDED,
    NEEDS_ARENA,
    NEEDS_HUGE,
    NEEDS_LONG,
    NEEDS_SHORT,
    NUM_HUGE,
    NUM_LONG,
    NUM_SHORT,
    OLD_BITS,
    OLD_TABLE,
    SHORT,
    SHORT_BITS,
    SHORT_SLOT,
    WORD_BYTES,
    WORD_COUNTS,
    WORD_ENDS,
    WORD_TEXT,
    WORDS_LISTED,
)
from groundup.tokenizer.fast.machine import (
    copy,
    i64,
    i64_at,
    kernel,
    leading_zeros,
    load_u64,
    low_bytes,
    prefetch,
    u8_at,
    u64,
    u64_at,
)

FACTOR, _OTHER_FACTOR = u64(0x9E3779B97F4A7C15), u64(0xC2B2AE3D27D4EB4F)  # odd, with bits in no order


# --- adding a word


@kernel
def add_word(fields, address, size, count):
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
def prefetch_slot(fields, address, size):
    low = _low(address, size)
    if size <= 8:
        prefetch(fields[SHORT] + _home(low, fields[SHORT_BITS]) * SHORT_SLOT * 8)
    elif size <= 15:
        prefetch(fields[LONG] + _home(_mix(low, _high(address, size)), fields[LONG_BITS]) * LONG_SLOT * 8)


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
    digest = i64(hash_bytes(address, size))
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
        if entry[0] == digest and entry[2] == size and same_bytes(fields[ARENA] + entry[1], address, size):
            return slot
        slot = (slot + 1) & mask


# --- keys


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
    return i64((key * FACTOR) >> u64(64 - bits))


@kernel
def _mix(low, high):
    return low ^ (high * _OTHER_FACTOR)


# --- room


@kernel
def missing_room(fields, arena_bytes):
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


# --- what the tables hold


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
