"""Counting pre-tokens: how often each different one occurs, in hash tables by length.

Nine words of ten have at most 8 bytes and stand in their home slot already. These are counted in a loop without
branches, which lists all others. The others then go in batches: first the memory of their slots is asked for, then
they are counted.
"""

from groundup.tokenizer.fast.blocks import next_text
from groundup.tokenizer.fast.context import HAS_ZERO, LENGTH, PLACES, POSITION, SCANNER, STAGE, WORDS
from groundup.tokenizer.fast.count_context import (
    BATCH,
    DONE,
    MISSES,
    NEXT_MISS,
    NEXT_WORD,
    NUM_MISSES,
    SHORT,
    SHORT_BITS,
    WORD_COUNTS,
    WORD_ENDS,
    WORD_TEXT,
    WORDS_LISTED,
)
from groundup.tokenizer.fast.count_tables import (
    FACTOR,
    add_word,
    missing_room,
    prefetch_slot,
)
from groundup.tokenizer.fast.count_tables import list_words as list_words
from groundup.tokenizer.fast.count_tables import refill_huge as refill_huge
from groundup.tokenizer.fast.count_tables import refill_long as refill_long
from groundup.tokenizer.fast.count_tables import refill_short as refill_short
from groundup.tokenizer.fast.machine import call, i32_at, i64, i64_at, kernel, load_u64, low_bytes, u64, u64_at
from groundup.tokenizer.fast.utf8 import is_utf8 as is_utf8

ENTRIES = ("is_utf8", "count_block", "add_words", "list_words", "refill_short", "refill_long", "refill_huge")


@kernel
def count_block(context):
    """Count the pre-tokens between the special tokens of a block. Called again with more room until it is DONE."""
    fields = i64_at(context)
    while True:
        status = _count_misses(fields)
        if status != DONE:
            return status
        if fields[POSITION] >= fields[LENGTH]:
            if not next_text(fields):
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
    for word in range(fields[WORDS]):
        end = i64(places[word + 1])
        size = end - start
        key = low_bytes(load_u64(stage + start), size)  # of a longer word it may be anything
        slot = table + (i64((key * FACTOR) >> shift) << 4)
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
    for word in range(fields[WORDS]):
        start, end = i64(places[word]), i64(places[word + 1])
        misses[word] = u64(start) | (u64(end - start) << u64(32))
    fields[NUM_MISSES] = fields[WORDS]
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
            prefetch_slot(fields, fields[STAGE] + (misses[index] & 0xFFFFFFFF), size)
            arena_bytes += size if size > 15 else 0
        status = missing_room(fields, arena_bytes)
        if status != DONE:
            return status
        for index in range(first, end):
            add_word(fields, fields[STAGE] + (misses[index] & 0xFFFFFFFF), misses[index] >> 32, 1)
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
            prefetch_slot(fields, fields[WORD_TEXT] + start, ends[word] - start)
            start = ends[word] + 1
        status = missing_room(fields, start - before_batch)
        if status != DONE:
            return status
        start = before_batch
        for word in range(first, end):
            add_word(fields, fields[WORD_TEXT] + start, ends[word] - start, counts[word])
            start = ends[word] + 1
        fields[NEXT_WORD] = end
    return i64(DONE)
