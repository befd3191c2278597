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
    DONE,
    FIRST,
    GO_ON,
    HEAP_SIZE,
    INSIDE,
    KEY,
    LEFT_SEEN,
    LEFT_TALLIES,
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
    RIGHT_SEEN,
    RIGHT_TALLIES,
    SYMBOLS,
    TALLY_RECORD,
    THRESHOLD,
    TIMES,
    WANTED_TOKENS,
    WEIGHT,
    WEIGHTS,
)
from groundup.tokenizer.fast.learn_counting import count_pairs as count_pairs
from groundup.tokenizer.fast.learn_counting import lay_out as lay_out
from groundup.tokenizer.fast.learn_counting import list_pairs as list_pairs
from groundup.tokenizer.fast.learn_heap import drop_top, pop_most_frequent, push
from groundup.tokenizer.fast.learn_pairs import (
    add_pair,
    describe_token,
    find_pair,
    has_room_for_pairs,
    pair_key,
    pair_record,
    token_size,
)
from groundup.tokenizer.fast.learn_pairs import fill_slots as fill_slots
from groundup.tokenizer.fast.machine import i32_at, i64, i64_at, kernel, prefetch, u64, u64_at

ENTRIES = ("lay_out", "count_pairs", "list_pairs", "fill_slots", "merge_pairs")

_HALF = u64(0xFFFFFFFF)
_AHEAD = 12  # occurrences between asking for memory and using it


@kernel
def merge_pairs(context_address):
    """Merge the most frequent pair, again and again: DONE when there is none, or tokens enough."""
    context = i64_at(context_address)
    budget = context[BUDGET]
    while context[NUM_TOKENS] < context[WANTED_TOKENS]:
        number = pop_most_frequent(context)
        if number < 0:
            return DONE
        status = _missing_room(context, i64_at(pair_record(context, number))[OCCURRENCES])
        if status != DONE:
            return status
        if budget < 0:
            return GO_ON
        drop_top(context)
        budget -= 1000 + _merge(context_address, number)
    return DONE


@kernel
def _missing_room(context, occurrences):
    """What is short for merging a pair that occurs so often; DONE when nothing is."""
    pairs = 2 * min(occurrences, context[NUM_TOKENS] + 1)
    if not has_room_for_pairs(context, pairs):
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
    record = i64_at(pair_record(context, number))
    key = u64_at(pair_record(context, number))[KEY]
    left, right, new = i64(key >> u64(32)), i64(key & _HALF), context[NUM_TOKENS]
    places, tried = context[OCCURRENCES_AT] + 4 * record[FIRST], record[OCCURRENCES]
    merged = _join(context, places, tried, left, right, new)
    _add_token(context_address, left, right, i64(i32_at(places)[0]))
    lefts, rights = _tally_neighbours(context, places, merged, new)
    for index in range(rights):
        neighbour = i64(i32_at(context[RIGHT_SEEN])[index])
        tally = _tally(context[RIGHT_TALLIES], neighbour)
        _lower(context, pair_key(right, left if neighbour == new else neighbour), tally[WEIGHT])
        _bear(context, pair_key(new, neighbour), tally)
    for index in range(lefts):
        neighbour = i64(i32_at(context[LEFT_SEEN])[index])
        tally = _tally(context[LEFT_TALLIES], neighbour)
        _lower(context, pair_key(neighbour, left), tally[WEIGHT])
        _bear(context, pair_key(neighbour, new), tally)
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
    describe_token(context_address, new, place, token_size(context, left) + token_size(context, right))
    context[NUM_TOKENS] = new + 1


@kernel
def _join(context, places_address, tried, left, right, new):
    """Merge the pair at those of its places where it still stands; keeps and counts these places."""
    symbols, places = i32_at(context[SYMBOLS]), i32_at(places_address)
    size = token_size(context, left)
    last = size + token_size(context, right) - 1
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
def _tally_neighbours(context, places_address, merged, new):
    """Count what stands beside the new token; two new ones side by side are counted as the right neighbour only."""
    symbols, weights, places = i32_at(context[SYMBOLS]), i64_at(context[WEIGHTS]), i32_at(places_address)
    size = token_size(context, new)
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
def _tally(tallies, token):
    return i64_at(tallies + token * TALLY_RECORD * 8)


@kernel
def _lower(context, key, weight):
    record = find_pair(context, key)
    if record != 0:
        i64_at(record)[COUNT] -= weight


@kernel
def _bear(context, key, tally):
    """Make the pair of a tally, with room for its places, unless it is too rare to be looked at."""
    if tally[WEIGHT] < context[THRESHOLD]:
        tally[PAIR] = 0
        return
    address = add_pair(context, key)
    record = i64_at(address)
    record[COUNT] = tally[WEIGHT]
    record[FIRST] = context[NUM_OCCURRENCES]
    context[NUM_OCCURRENCES] += tally[TIMES]
    tally[PAIR] = address
    push(context, tally[WEIGHT], context[NUM_PAIRS] - 1)


@kernel
def _list_new_pairs(context, places_address, merged, new):
    """Write the places of the new pairs, in ascending order."""
    symbols, places = i32_at(context[SYMBOLS]), i32_at(places_address)
    size = token_size(context, new)
    for index in range(merged):
        place = i64(places[index])
        before, after = i64(symbols[place - 1]), i64(symbols[place + size])
        if before >= 0 and before != new:
            _append(context, _tally(context[LEFT_TALLIES], before)[PAIR], place - token_size(context, before))
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
