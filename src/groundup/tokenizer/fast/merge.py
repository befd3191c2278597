"""Byte-pair encoding of one pre-token: `bpe.apply_merges`, on raw memory.

Both ways keep to the same rule, the pair of the lowest rank first and of equal ones the leftmost.
"""

from groundup.tokenizer.fast.byte_strings import hash_bytes, same_bytes
from groundup.tokenizer.fast.encode_context import (
    BYTE_IDS,
    BYTE_PAIRS,
    LACKS_BYTES,
    LONGEST_SCANNED,
    NO_ID,
    NO_PAIR,
    NO_RANK,
    NUM_TOKENS,
    OFFSETS,
    PAIRS,
    PAIRS_SHIFT,
    RANK_IDS,
    SCRATCH,
    SCRATCH_SIZE,
    TOKEN_TABLE,
    TOKEN_TABLE_SIZE,
    TOKEN_TEXT,
)
from groundup.tokenizer.fast.machine import (
    i64,
    i64_at,
    kernel,
    u8_at,
    u32_at,
    u64,
    u64_at,
)

_EMPTY = u64(NO_PAIR)
MERGE_MULTIPLIER = 0x9E37_79B9_7F4A_7C15
_MULTIPLIER = u64(MERGE_MULTIPLIER)
_PLACE_BITS = u64(40)
_PLACE_MASK = u64((1 << 40) - 1)


@kernel
def rank_of(context, left, right):
    """The rank of a pair of ids, NO_RANK if they never merge."""
    fields = i64_at(context)
    pairs = u64_at(fields[PAIRS])
    key = (u64(left) << u64(20)) | u64(right)
    slot = (key * _MULTIPLIER) >> u64(fields[PAIRS_SHIFT])
    found = pairs[slot]
    while found >> u64(24) != key:
        if found == _EMPTY:
            return i64(NO_RANK)
        slot += u64(1)
        found = pairs[slot]
    return i64(found & u64(NO_RANK))


@kernel
def merge(context, address, length):
    """Encode a pre-token; its ids are then at the begin of SCRATCH (uint32). Returns how many there are."""
    fields = i64_at(context)
    if fields[NUM_TOKENS] != 0:
        whole = token_of(context, address, length)
        if whole >= 0:
            u32_at(fields[SCRATCH])[0] = whole
            return i64(1)
    if fields[LACKS_BYTES] != 0:
        kept = fields[SCRATCH] + fields[SCRATCH_SIZE] - length
        address, length = kept, _copy_known_bytes(context, address, length, kept)
        if length == 0:
            return length
    if length <= LONGEST_SCANNED:
        return _merge_scanning(context, address, length)
    return _merge_with_heap(context, address, length)


@kernel
def _copy_known_bytes(context, address, length, target):
    """Copy the bytes that have a token; how many there are."""
    source, kept, byte_ids = u8_at(address), u8_at(target), u32_at(i64_at(context)[BYTE_IDS])
    count = i64(0)
    for place in range(length):
        kept[count] = source[place]
        count += i64(byte_ids[source[place]] != NO_ID)
    return count


@kernel
def token_of(context, address, length):
    """The id of the token that has exactly these bytes, or -1."""
    fields = i64_at(context)
    table, offsets = u32_at(fields[TOKEN_TABLE]), i64_at(fields[OFFSETS])
    mask = fields[TOKEN_TABLE_SIZE] - 1
    slot = i64(hash_bytes(address, length) >> u64(20)) & mask
    while table[slot] != 0:
        token = i64(table[slot]) - 1
        if offsets[token + 1] - offsets[token] == length and same_bytes(
            fields[TOKEN_TEXT] + offsets[token], address, length
        ):
            return token
        slot = (slot + 1) & mask
    return i64(-1)


@kernel
def _merge_scanning(context, address, length):
    """Look for the lowest rank again after each merge: quadratic, and the fastest for a word."""
    fields = i64_at(context)
    text, byte_ids, byte_pairs = u8_at(address), u32_at(fields[BYTE_IDS]), u32_at(fields[BYTE_PAIRS])
    rank_ids = u32_at(fields[RANK_IDS])
    ids = u32_at(fields[SCRATCH])
    ranks = u32_at(fields[SCRATCH] + 4 * (LONGEST_SCANNED + 8))
    for place in range(length - 1):
        ids[place] = byte_ids[text[place]]
        ranks[place] = byte_pairs[(i64(text[place]) << 8) | i64(text[place + 1])]
    ids[length - 1] = byte_ids[text[length - 1]]
    while True:
        best, place = i64(NO_RANK), i64(0)
        for candidate in range(length - 1):
            if i64(ranks[candidate]) < best:
                best, place = i64(ranks[candidate]), candidate
        if best == NO_RANK:
            return length
        length -= 1
        ids[place] = rank_ids[best]
        for later in range(place + 1, length):
            ids[later] = ids[later + 1]
            ranks[later] = ranks[later + 1]
        if place + 1 < length:
            ranks[place] = rank_of(context, ids[place], ids[place + 1])
        if place > 0:
            ranks[place - 1] = rank_of(context, ids[place - 1], ids[place])


@kernel
def _merge_with_heap(context, address, length):
    """A heap of (rank, place) over a linked list: n log n, for pre-tokens of any length.

    Pairs in the heap may be stale; a place counts only if the pair there still has the rank of the entry.
    """
    fields = i64_at(context)
    text, byte_ids, rank_ids = u8_at(address), u32_at(fields[BYTE_IDS]), u32_at(fields[RANK_IDS])
    ids = u32_at(fields[SCRATCH])
    after = u32_at(fields[SCRATCH] + 4 * length)
    before = u32_at(fields[SCRATCH] + 8 * length)
    heap = u64_at(fields[SCRATCH] + ((12 * length + 7) & ~7))
    gone = u64(0xFFFF_FFFF)
    size = i64(0)
    for place in range(length):
        ids[place] = byte_ids[text[place]]
        after[place], before[place] = place + 1, place - 1
    for place in range(length - 1):
        size = _push(heap, size, rank_of(context, ids[place], ids[place + 1]), place)
    while size > 0:
        rank, place = i64(heap[0] >> _PLACE_BITS), i64(heap[0] & _PLACE_MASK)
        size = _pop(heap, size)
        partner = i64(after[place])
        if u64(ids[place]) == gone or partner >= length or rank_of(context, ids[place], ids[partner]) != rank:
            continue
        ids[place], ids[partner] = rank_ids[rank], gone
        following = i64(after[partner])
        after[place] = following
        if following < length:
            before[following] = place
            size = _push(heap, size, rank_of(context, ids[place], ids[following]), place)
        if place > 0:
            previous = i64(before[place])
            size = _push(heap, size, rank_of(context, ids[previous], ids[place]), previous)
    count = place = i64(0)
    while place < length:
        ids[count] = ids[place]
        count += 1
        place = i64(after[place])
    return count


@kernel
def _push(heap, size, rank, place):
    """Add a pair to the heap, unless it never merges; the new size."""
    if rank == NO_RANK:
        return size
    entry = (u64(rank) << _PLACE_BITS) | u64(place)
    hole = size
    while hole > 0 and entry < heap[(hole - 1) >> 1]:
        heap[hole] = heap[(hole - 1) >> 1]
        hole = (hole - 1) >> 1
    heap[hole] = entry
    return size + 1


@kernel
def _pop(heap, size):
    """Remove the least entry of the heap; the new size."""
    size -= 1
    entry = heap[size]
    hole = i64(0)
    child = i64(1)
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if entry <= heap[child]:
            break
        heap[hole] = heap[child]
        hole = child
        child = 2 * hole + 1
    heap[hole] = entry
    return size
