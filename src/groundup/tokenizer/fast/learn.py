"""Learning merges: what `bpe.learn_merges` does, on memory that holds nothing but the symbols that are left.

The text of all different words is one array of symbols. A token stands at its first and at its last place, so that
both neighbours of a token are one step away; merging two tokens writes four symbols.

Only pairs that occur at least THRESHOLD times are listed: those that are rarer are never merged before the frequent
ones are gone. A pair is born complete, in the merge that makes the newer of its tokens, and only loses occurrences
after that. So the places of a pair are written once, in ascending order, and those that no longer hold are passed
over; and the counts in the heap are upper bounds, put right when they come to the top. When the heap is empty, the
pairs are counted anew with a lower threshold.
"""

from groundup.tokenizer.fast.learn_context import (
    BUDGET,
    COUNT,
    CURSOR,
    DONE,
    FIRST,
    GO_ON,
    HEAD,
    HEAP,
    HEAP_SIZE,
    INSIDE,
    KEY,
    LEFT_SEEN,
    LEFT_TALLIES,
    LENGTH,
    MAX_HEAP,
    MAX_OCCURRENCES,
    MERGES,
    NEED_HEAP,
    NEED_OCCURRENCES,
    NEED_PAIRS,
    NEEDED,
    NUM_OCCURRENCES,
    NUM_PAIRS,
    NUM_TOKENS,
    OCCURRENCES,
    OCCURRENCES_AT,
    PAIR,
    PAIR_RECORD,
    PAIRS,
    PLACE,
    RIGHT_SEEN,
    RIGHT_TALLIES,
    SEPARATOR,
    SIZE,
    SLOT_BITS,
    SLOTS,
    SYMBOLS,
    TALLY_RECORD,
    TEXT,
    THRESHOLD,
    TIMES,
    TOKEN_RECORD,
    TOKENS,
    WANTED_TOKENS,
    WEIGHT,
    WEIGHTS,
    WORD_COUNTS,
    WORD_ENDS,
    WORDS,
)
from groundup.tokenizer.fast.machine import i32_at, i64, i64_at, kernel, prefetch, u8_at, u64, u64_at

ENTRIES = ("lay_out", "count_pairs", "list_pairs", "fill_slots", "merge_pairs")

_GOLDEN = u64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads keys over the high bits of the product
_NO_KEY = u64(0xFFFFFFFFFFFFFFFF)
_HALF = u64(0xFFFFFFFF)
_AHEAD = 12  # occurrences between asking for memory and using it


# --- the text as symbols


@kernel
def lay_out(context_address):
    """Fill symbols and weights from the words, and the records of the tokens that are bytes."""
    context = i64_at(context_address)
    symbols, weights = i32_at(context[SYMBOLS]), i64_at(context[WEIGHTS])
    text, ends, counts = u8_at(context[TEXT]), i64_at(context[WORD_ENDS]), i64_at(context[WORD_COUNTS])
    for byte in range(256):
        symbols[byte] = SEPARATOR
        _describe_token(context_address, byte, byte, 1)
    place = 256
    for word in range(context[WORDS]):
        while place < ends[word]:
            symbols[place] = text[place]
            weights[place] = counts[word]
            place += 1
        symbols[place] = SEPARATOR
        place += 1
    context[NUM_TOKENS] = 256
    return DONE


@kernel
def _describe_token(context_address, token, place, size):
    """Note where the bytes of a token can be read, and the first 8 of them as a number that sorts like them."""
    context = i64_at(context_address)
    text = u8_at(context[TEXT])
    head = u64(0)
    for index in range(8):
        head <<= u64(8)
        if index < size:
            head |= u64(text[place + index])
    record = context[TOKENS] + token * TOKEN_RECORD * 8
    u64_at(record)[HEAD] = head
    i64_at(record)[PLACE] = place
    i64_at(record)[SIZE] = size


@kernel
def _token_size(context, token):
    return i64_at(context[TOKENS])[token * TOKEN_RECORD + SIZE]


# --- the table of pairs


@kernel
def _key(left, right):
    return (u64(left) << u64(32)) | u64(right)


@kernel
def _slot_of(context, key):
    """The slot that holds a key, or the empty one where it belongs."""
    slots = u64_at(context[SLOTS])
    bits = context[SLOT_BITS]
    mask = (i64(1) << bits) - 1
    slot = i64((key * _GOLDEN) >> u64(64 - bits))
    while slots[2 * slot] != key and slots[2 * slot] != _NO_KEY:
        slot = (slot + 1) & mask
    return slot


@kernel
def _find_pair(context, key):
    """The record of a pair, or 0 when it is not in the table."""
    slot = _slot_of(context, key)
    if u64_at(context[SLOTS])[2 * slot] == _NO_KEY:
        return i64(0)
    return _pair(context, i64_at(context[SLOTS])[2 * slot + 1])


@kernel
def _pair(context, number):
    return context[PAIRS] + number * PAIR_RECORD * 8


@kernel
def _add_pair(context, key):
    """The record of a pair, made when it is not there yet."""
    slot = _slot_of(context, key)
    slots = i64_at(context[SLOTS])
    if u64_at(context[SLOTS])[2 * slot] == _NO_KEY:
        number = context[NUM_PAIRS]
        u64_at(context[SLOTS])[2 * slot] = key
        slots[2 * slot + 1] = number
        context[NUM_PAIRS] = number + 1
        record = _pair(context, number)
        u64_at(record)[KEY] = key
        i64_at(record)[COUNT] = 0
        i64_at(record)[FIRST] = 0
        i64_at(record)[OCCURRENCES] = 0
    return _pair(context, slots[2 * slot + 1])


@kernel
def _has_room_for_pairs(context, more):
    """Whether the table stays at most half full."""
    if 2 * (context[NUM_PAIRS] + more) <= i64(1) << context[SLOT_BITS]:
        return True
    context[NEEDED] = more
    return False


@kernel
def fill_slots(context_address):
    """Put all pairs into a new table of slots."""
    context = i64_at(context_address)
    slots = i64_at(context[SLOTS])
    for slot in range(i64(1) << context[SLOT_BITS]):
        u64_at(context[SLOTS])[2 * slot] = _NO_KEY
    for number in range(context[NUM_PAIRS]):
        key = u64_at(_pair(context, number))[KEY]
        slot = _slot_of(context, key)
        u64_at(context[SLOTS])[2 * slot] = key
        slots[2 * slot + 1] = number
    return DONE


# --- counting from the beginning


@kernel
def count_pairs(context_address):
    """Count all pairs of the text, from CURSOR on."""
    context = i64_at(context_address)
    symbols, weights = i32_at(context[SYMBOLS]), i64_at(context[WEIGHTS])
    place = context[CURSOR]
    while place < context[LENGTH]:
        left = symbols[place]
        if left < 0:
            place += 1
            continue
        after = place + _token_size(context, left)
        if symbols[after] >= 0:
            if not _has_room_for_pairs(context, 1):
                context[CURSOR] = place
                return NEED_PAIRS
            record = i64_at(_add_pair(context, _key(left, symbols[after])))
            record[COUNT] += weights[place]
            record[OCCURRENCES] += 1
        place = after
    context[CURSOR] = place
    return DONE


@kernel
def list_pairs(context_address):
    """List the places of the pairs that reach the threshold, and put these into the heap."""
    context = i64_at(context_address)
    total, listed = _share_out(context)
    if total > context[MAX_OCCURRENCES]:
        context[NEEDED] = total
        return NEED_OCCURRENCES
    if listed > context[MAX_HEAP]:
        context[NEEDED] = listed
        return NEED_HEAP
    context[NUM_OCCURRENCES] = total
    _write_places(context)
    context[HEAP_SIZE] = 0
    for number in range(context[NUM_PAIRS]):
        if i64_at(_pair(context, number))[COUNT] >= context[THRESHOLD]:
            _push(context, i64_at(_pair(context, number))[COUNT], number)
    return DONE


@kernel
def _share_out(context):
    """Give each frequent pair its part of the list; returns the sizes of all parts and of the heap."""
    total = listed = 0
    for number in range(context[NUM_PAIRS]):
        record = i64_at(_pair(context, number))
        if record[COUNT] >= context[THRESHOLD]:
            record[FIRST] = total
            total += record[OCCURRENCES]
            listed += 1
    return total, listed


@kernel
def _write_places(context):
    """Write the places of the frequent pairs, each to its part of the list."""
    symbols, occurrences = i32_at(context[SYMBOLS]), i32_at(context[OCCURRENCES_AT])
    for number in range(context[NUM_PAIRS]):
        i64_at(_pair(context, number))[OCCURRENCES] = 0
    place = 256
    while place < context[LENGTH]:
        left = symbols[place]
        if left < 0:
            place += 1
            continue
        after = place + _token_size(context, left)
        if symbols[after] >= 0:
            record = i64_at(_find_pair(context, _key(left, symbols[after])))
            if record[COUNT] >= context[THRESHOLD]:
                occurrences[record[FIRST] + record[OCCURRENCES]] = place
                record[OCCURRENCES] += 1
        place = after


# --- the heap: the most frequent pair on top, of equally frequent ones the greatest


@kernel
def _push(context, count, number):
    heap = i64_at(context[HEAP])
    at = context[HEAP_SIZE]
    context[HEAP_SIZE] = at + 1
    while at > 0:
        above = (at - 1) >> 1
        if not _comes_before(context, count, number, heap[2 * above], heap[2 * above + 1]):
            break
        heap[2 * at] = heap[2 * above]
        heap[2 * at + 1] = heap[2 * above + 1]
        at = above
    heap[2 * at] = count
    heap[2 * at + 1] = number


@kernel
def _replace_top(context, count, number):
    """Put an entry in the place of the top, and let it sink to where it belongs."""
    heap = i64_at(context[HEAP])
    size = context[HEAP_SIZE]
    at = 0
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and _comes_before(
            context, heap[2 * below + 2], heap[2 * below + 3], heap[2 * below], heap[2 * below + 1]
        ):
            below += 1
        if not _comes_before(context, heap[2 * below], heap[2 * below + 1], count, number):
            break
        heap[2 * at] = heap[2 * below]
        heap[2 * at + 1] = heap[2 * below + 1]
        at = below
    heap[2 * at] = count
    heap[2 * at + 1] = number


@kernel
def _drop_top(context):
    heap = i64_at(context[HEAP])
    last = context[HEAP_SIZE] - 1
    context[HEAP_SIZE] = last
    _replace_top(context, heap[2 * last], heap[2 * last + 1])


@kernel
def _comes_before(context, count, number, other_count, other_number):
    if count != other_count:
        return count > other_count
    key, other_key = u64_at(_pair(context, number))[KEY], u64_at(_pair(context, other_number))[KEY]
    order = _compare(context, i64(key >> u64(32)), i64(other_key >> u64(32)))
    if order == 0:
        order = _compare(context, i64(key & _HALF), i64(other_key & _HALF))
    return order > 0


@kernel
def _compare(context, one, other):
    """Positive when the bytes of token `one` are greater than those of `other`, 0 when equal, else negative."""
    if one == other:
        return 0
    record, other_record = context[TOKENS] + one * TOKEN_RECORD * 8, context[TOKENS] + other * TOKEN_RECORD * 8
    head, other_head = u64_at(record)[HEAD], u64_at(other_record)[HEAD]
    if head != other_head:
        return 1 if head > other_head else -1
    size, other_size = i64_at(record)[SIZE], i64_at(other_record)[SIZE]
    bytes_, other_bytes = (
        u8_at(context[TEXT] + i64_at(record)[PLACE]),
        u8_at(context[TEXT] + i64_at(other_record)[PLACE]),
    )
    for index in range(min(size, other_size)):
        if bytes_[index] != other_bytes[index]:
            return 1 if bytes_[index] > other_bytes[index] else -1
    return size - other_size


@kernel
def _pop_most_frequent(context):
    """The number of the pair to merge next, or -1 when none is left that reaches the threshold."""
    heap = i64_at(context[HEAP])
    while context[HEAP_SIZE] > 0:
        number = heap[1]
        count = i64_at(_pair(context, number))[COUNT]
        if count == heap[0]:
            return number
        if count >= context[THRESHOLD]:
            _replace_top(context, count, number)
        else:
            _drop_top(context)
    return i64(-1)


# --- merging


@kernel
def merge_pairs(context_address):
    """Merge the most frequent pair, again and again: DONE when there is none, or tokens enough."""
    context = i64_at(context_address)
    budget = context[BUDGET]
    while context[NUM_TOKENS] < context[WANTED_TOKENS]:
        number = _pop_most_frequent(context)
        if number < 0:
            return DONE
        status = _missing_room(context, i64_at(_pair(context, number))[OCCURRENCES])
        if status != DONE:
            return status
        if budget < 0:
            return GO_ON
        _drop_top(context)
        budget -= 1000 + _merge(context_address, number)
    return DONE


@kernel
def _missing_room(context, occurrences):
    """What is short for merging a pair that occurs so often; DONE when nothing is."""
    pairs = 2 * min(occurrences, context[NUM_TOKENS] + 1)
    if not _has_room_for_pairs(context, pairs):
        return NEED_PAIRS
    context[NEEDED] = context[NUM_OCCURRENCES] + 2 * occurrences
    if context[NEEDED] > context[MAX_OCCURRENCES]:
        return NEED_OCCURRENCES
    context[NEEDED] = context[HEAP_SIZE] + pairs
    if context[NEEDED] > context[MAX_HEAP]:
        return NEED_HEAP
    return DONE


@kernel
def _merge(context_address, number):
    """Make a token of a pair wherever it stands, and bring the pairs up to date; returns how often it was looked up."""
    context = i64_at(context_address)
    record = i64_at(_pair(context, number))
    key = u64_at(_pair(context, number))[KEY]
    left, right, new = i64(key >> u64(32)), i64(key & _HALF), context[NUM_TOKENS]
    places, tried = context[OCCURRENCES_AT] + 4 * record[FIRST], record[OCCURRENCES]
    merged = _join(context, places, tried, left, right, new)
    _add_token(context_address, left, right, i64(i32_at(places)[0]))
    lefts, rights = _tally_neighbours(context, places, merged, new)
    for index in range(rights):
        neighbour = i64(i32_at(context[RIGHT_SEEN])[index])
        tally = _tally(context[RIGHT_TALLIES], neighbour)
        _lower(context, _key(right, left if neighbour == new else neighbour), tally[WEIGHT])
        _bear(context, _key(new, neighbour), tally)
    for index in range(lefts):
        neighbour = i64(i32_at(context[LEFT_SEEN])[index])
        tally = _tally(context[LEFT_TALLIES], neighbour)
        _lower(context, _key(neighbour, left), tally[WEIGHT])
        _bear(context, _key(neighbour, new), tally)
    record[COUNT] = 0
    _list_new_pairs(context, places, merged, new)
    _clear(context[RIGHT_TALLIES], context[RIGHT_SEEN], rights)
    _clear(context[LEFT_TALLIES], context[LEFT_SEEN], lefts)
    return tried


@kernel
def _add_token(context_address, left, right, place):
    context = i64_at(context_address)
    new = context[NUM_TOKENS]
    merge = i32_at(context[MERGES])
    merge[2 * (new - 256)] = left
    merge[2 * (new - 256) + 1] = right
    _describe_token(context_address, new, place, _token_size(context, left) + _token_size(context, right))
    context[NUM_TOKENS] = new + 1


@kernel
def _join(context, places_address, tried, left, right, new):
    """Merge the pair at those of its places where it still stands; keeps and counts these places."""
    symbols, places = i32_at(context[SYMBOLS]), i32_at(places_address)
    size = _token_size(context, left)
    last = size + _token_size(context, right) - 1
    merged = 0
    for index in range(tried):
        place = places[index]
        prefetch(context[SYMBOLS] + 4 * i64(places[index + _AHEAD]))
        if symbols[place] != left or symbols[place + size] != right:
            continue
        symbols[place + size - 1] = INSIDE
        symbols[place + size] = INSIDE
        symbols[place] = new
        symbols[place + last] = new
        places[merged] = place
        merged += 1
    return merged


@kernel
def _tally(tallies, token):
    return i64_at(tallies + token * TALLY_RECORD * 8)


@kernel
def _tally_neighbours(context, places_address, merged, new):
    """Count what stands beside the new token; two new ones side by side are counted as the right neighbour only."""
    symbols, weights, places = i32_at(context[SYMBOLS]), i64_at(context[WEIGHTS]), i32_at(places_address)
    size = _token_size(context, new)
    lefts = rights = 0
    for index in range(merged):
        place = places[index]
        weight = weights[place]
        before, after = i64(symbols[place - 1]), i64(symbols[place + size])
        if before >= 0 and before != new:
            lefts += _note(context[LEFT_TALLIES], context[LEFT_SEEN], lefts, before, weight)
        if after >= 0:
            rights += _note(context[RIGHT_TALLIES], context[RIGHT_SEEN], rights, after, weight)
    return lefts, rights


@kernel
def _note(tallies, seen, num_seen, token, weight):
    """Add to the tally of a neighbour; returns 1 for the first time, else 0."""
    tally = _tally(tallies, token)
    tally[WEIGHT] += weight
    tally[TIMES] += 1
    if tally[TIMES] > 1:
        return 0
    i32_at(seen)[num_seen] = token
    return 1


@kernel
def _lower(context, key, weight):
    record = _find_pair(context, key)
    if record != 0:
        i64_at(record)[COUNT] -= weight


@kernel
def _bear(context, key, tally):
    """Make the pair of a tally, with room for its places, unless it is too rare to be looked at."""
    if tally[WEIGHT] < context[THRESHOLD]:
        tally[PAIR] = 0
        return
    address = _add_pair(context, key)
    record = i64_at(address)
    record[COUNT] = tally[WEIGHT]
    record[FIRST] = context[NUM_OCCURRENCES]
    context[NUM_OCCURRENCES] += tally[TIMES]
    tally[PAIR] = address
    _push(context, tally[WEIGHT], context[NUM_PAIRS] - 1)


@kernel
def _list_new_pairs(context, places_address, merged, new):
    """Write the places of the new pairs, in ascending order."""
    symbols, places = i32_at(context[SYMBOLS]), i32_at(places_address)
    size = _token_size(context, new)
    for index in range(merged):
        place = i64(places[index])
        before, after = i64(symbols[place - 1]), i64(symbols[place + size])
        if before >= 0 and before != new:
            _append(context, _tally(context[LEFT_TALLIES], before)[PAIR], place - _token_size(context, before))
        if after >= 0:
            _append(context, _tally(context[RIGHT_TALLIES], after)[PAIR], place)


@kernel
def _append(context, address, place):
    if address != 0:
        record = i64_at(address)
        i32_at(context[OCCURRENCES_AT])[record[FIRST] + record[OCCURRENCES]] = place
        record[OCCURRENCES] += 1


@kernel
def _clear(tallies, seen, num_seen):
    for index in range(num_seen):
        tally = _tally(tallies, i64(i32_at(seen)[index]))
        tally[WEIGHT] = 0
        tally[TIMES] = 0
