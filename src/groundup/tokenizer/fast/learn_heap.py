"""The heap of learn.py: the most frequent pair on top, of equally frequent ones the greatest.

Its counts are upper bounds. They are put right when they come to the top.
"""

from groundup.tokenizer.fast.learn_context import (
    COUNT,
    HEAD,
    HEAP,
    HEAP_SIZE,
    KEY,
    PLACE,
    SIZE,
    TEXT,
    THRESHOLD,
    TOKEN_RECORD,
    TOKENS,
)
from groundup.tokenizer.fast.learn_pairs import pair_record
from groundup.tokenizer.fast.machine import i64, i64_at, kernel, u8_at, u64, u64_at

_HALF = u64(0xFFFFFFFF)


@kernel
def pop_most_frequent(context):
    """The number of the pair to merge next, or -1 when none is left that reaches the threshold."""
    heap = i64_at(context[HEAP])
    while context[HEAP_SIZE] > 0:
        number = heap[1]
        count = i64_at(pair_record(context, number))[COUNT]
        if count == heap[0]:
            return number
        if count >= context[THRESHOLD]:
            _replace_top(context, count, number)
        else:
            drop_top(context)
    return i64(-1)


@kernel
def push(context, count, number):
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
def drop_top(context):
    heap = i64_at(context[HEAP])
    last = context[HEAP_SIZE] - 1
    context[HEAP_SIZE] = last
    _replace_top(context, heap[2 * last], heap[2 * last + 1])


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
def _comes_before(context, count, number, other_count, other_number):
    if count != other_count:
        return count > other_count
    key, other_key = u64_at(pair_record(context, number))[KEY], u64_at(pair_record(context, other_number))[KEY]
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
