"""Learning merges, its beginnings: the text as symbols, and all pairs counted anew, as often as the threshold falls.

lay_out        the bytes of all different words, each word between separators, with its count at every byte
count_pairs    how often each pair of neighbours occurs
list_pairs     where those are that reach the threshold, and these into the heap
"""

from groundup.tokenizer.fast.learn_context import (
    COUNT,
    CURSOR,
    DONE,
    FIRST,
    HEAP_SIZE,
    LENGTH,
    MAX_HEAP,
    MAX_OCCURRENCES,
    NEED_HEAP,
    NEED_OCCURRENCES,
    NEED_PAIRS,
    NEEDED,
    NUM_OCCURRENCES,
    NUM_PAIRS,
    NUM_TOKENS,
    OCCURRENCES,
    OCCURRENCES_AT,
    SEPARATOR,
    SYMBOLS,
    TEXT,
    THRESHOLD,
    WEIGHTS,
    WORD_COUNTS,
    WORD_ENDS,
    WORDS,
)
from groundup.tokenizer.fast.learn_heap import push
from groundup.tokenizer.fast.learn_pairs import (
    add_pair,
    describe_token,
    find_pair,
    has_room_for_pairs,
    pair_key,
    pair_record,
    token_size,
)
from groundup.tokenizer.fast.machine import i32_at, i64_at, kernel, u8_at


@kernel
def lay_out(context_address):
    """Fill symbols and weights from the words, and the records of the tokens that are bytes."""
    context = i64_at(context_address)
    symbols, weights = i32_at(context[SYMBOLS]), i64_at(context[WEIGHTS])
    text, ends, counts = u8_at(context[TEXT]), i64_at(context[WORD_ENDS]), i64_at(context[WORD_COUNTS])
    for byte in range(256):
        symbols[byte] = SEPARATOR
        describe_token(context_address, byte, byte, 1)
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
        after = place + token_size(context, left)
        if symbols[after] >= 0:
            if not has_room_for_pairs(context, 1):
                context[CURSOR] = place
                return NEED_PAIRS
            record = i64_at(add_pair(context, pair_key(left, symbols[after])))
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
        if i64_at(pair_record(context, number))[COUNT] >= context[THRESHOLD]:
            push(context, i64_at(pair_record(context, number))[COUNT], number)
    return DONE


@kernel
def _share_out(context):
    """Give each frequent pair its part of the list; returns the sizes of all parts and of the heap."""
    total = listed = 0
    for number in range(context[NUM_PAIRS]):
        record = i64_at(pair_record(context, number))
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
        i64_at(pair_record(context, number))[OCCURRENCES] = 0
    place = 256
    while place < context[LENGTH]:
        left = symbols[place]
        if left < 0:
            place += 1
            continue
        after = place + token_size(context, left)
        if symbols[after] >= 0:
            record = i64_at(find_pair(context, pair_key(left, symbols[after])))
            if record[COUNT] >= context[THRESHOLD]:
                occurrences[record[FIRST] + record[OCCURRENCES]] = place
                record[OCCURRENCES] += 1
        place = after
