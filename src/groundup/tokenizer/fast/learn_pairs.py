"""The tokens and the pairs of learn.py: a record for each, and a hash table that finds the record of a pair."""

from groundup.tokenizer.fast.learn_context import (
    COUNT,
    DONE,
    FIRST,
    HEAD,
    KEY,
    NEEDED,
    NUM_PAIRS,
    OCCURRENCES,
    PAIR_RECORD,
    PAIRS,
    PLACE,
    SIZE,
    SLOT_BITS,
    SLOTS,
    TEXT,
    TOKEN_RECORD,
    TOKENS,
)
from groundup.tokenizer.fast.machine import i64, i64_at, kernel, u8_at, u64, u64_at

_GOLDEN = u64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads keys over the high bits of the product
_NO_KEY = u64(0xFFFFFFFFFFFFFFFF)


@kernel
def describe_token(context_address, token, place, size):
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
def token_size(context, token):
    return i64_at(context[TOKENS])[token * TOKEN_RECORD + SIZE]


@kernel
def pair_key(left, right):
    return (u64(left) << u64(32)) | u64(right)


@kernel
def pair_record(context, number):
    return context[PAIRS] + number * PAIR_RECORD * 8


@kernel
def find_pair(context, key):
    """The record of a pair, or 0 when it is not in the table."""
    slot = _slot_of(context, key)
    if u64_at(context[SLOTS])[2 * slot] == _NO_KEY:
        return i64(0)
    return pair_record(context, i64_at(context[SLOTS])[2 * slot + 1])


@kernel
def add_pair(context, key):
    """The record of a pair, made when it is not there yet."""
    slot = _slot_of(context, key)
    slots = i64_at(context[SLOTS])
    if u64_at(context[SLOTS])[2 * slot] == _NO_KEY:
        number = context[NUM_PAIRS]
        u64_at(context[SLOTS])[2 * slot] = key
        slots[2 * slot + 1] = number
        context[NUM_PAIRS] = number + 1
        record = pair_record(context, number)
        u64_at(record)[KEY] = key
        i64_at(record)[COUNT] = 0
        i64_at(record)[FIRST] = 0
        i64_at(record)[OCCURRENCES] = 0
    return pair_record(context, slots[2 * slot + 1])


@kernel
def has_room_for_pairs(context, more):
    """Whether the table stays at most half full."""
    if 2 * (context[NUM_PAIRS] + more) <= i64(1) << context[SLOT_BITS]:
        return True
    context[NEEDED] = more
    return False


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
def fill_slots(context_address):
    """Put all pairs into a new table of slots."""
    context = i64_at(context_address)
    slots = i64_at(context[SLOTS])
    for slot in range(i64(1) << context[SLOT_BITS]):
        u64_at(context[SLOTS])[2 * slot] = _NO_KEY
    for number in range(context[NUM_PAIRS]):
        key = u64_at(pair_record(context, number))[KEY]
        slot = _slot_of(context, key)
        u64_at(context[SLOTS])[2 * slot] = key
        slots[2 * slot + 1] = number
    return DONE
