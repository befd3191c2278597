"""From ids to bytes: 16 bytes at a time whatever a token's length, the next token overwriting what was too much."""

from groundup.tokenizer.fast.decode_context import (
    BATCH,
    DECODE_FIELDS,
    ID_BYTES,
    IDS,
    NONE,
    NOT_SHORT,
    NUM_IDS,
    OFFSETS,
    OUTPUT,
    OUTPUT_SIZE,
    ROW_BYTES,
    ROWS,
    TOKEN_LENGTHS,
    TOKEN_TEXT,
    VOCAB_SIZE,
)
from groundup.tokenizer.fast.interpreter import (
    allocate,
    content_of,
    forget_exception,
    item_of,
    new_bytes,
    number_of,
    own,
    release,
    size_of,
)
from groundup.tokenizer.fast.machine import copy, copy_16, i64, i64_at, kernel, u8_at, u16_at, u32_at, u64, u64_at

ENTRIES = ("decoded_size", "decode", "decode_list")


@kernel
def decoded_size(context):
    """How many bytes the ids stand for; -1 - n when id number n has no token."""
    fields = i64_at(context)
    size = i64(0)
    for first in range(0, fields[NUM_IDS], BATCH):
        count = min(i64(BATCH), fields[NUM_IDS] - first)
        of_batch = _short_size(context, first, count)
        if of_batch < 0:
            of_batch = _exact_size(context, first, count)
        if of_batch < 0:
            return of_batch
        size += of_batch
    return size


@kernel
def decode(context):
    """Write the bytes of the ids to OUTPUT, which has exactly the room for them; how many they are.

    -1 if they do not fit, or there is none for an id: somebody changed the ids after their size was found.
    """
    fields = i64_at(context)
    place, end = fields[OUTPUT], fields[OUTPUT] + fields[OUTPUT_SIZE]
    for first in range(0, fields[NUM_IDS], BATCH):
        count = min(i64(BATCH), fields[NUM_IDS] - first)
        behind = _write_short(context, place, first, count) if end - place >= BATCH * NOT_SHORT else i64(0)
        place = behind if behind != 0 else _write_exactly(context, place, end, first, count)
        if place == 0:
            return i64(-1)
    return place - fields[OUTPUT]


@kernel
def _short_size(context, first, count):
    """How many bytes a batch stands for; -1 if one of its ids has no token of up to 16 bytes."""
    fields = i64_at(context)
    source = fields[IDS] + first * fields[ID_BYTES]
    if fields[ID_BYTES] == 2:
        return _size_of(context, u16_at(source), count)
    if fields[ID_BYTES] == 4:
        return _size_of(context, u32_at(source), count)
    return _size_of(context, u64_at(source), count)


@kernel
def _size_of(context, ids, count):
    fields = i64_at(context)
    lengths, behind_last = u8_at(fields[TOKEN_LENGTHS]), u64(fields[VOCAB_SIZE])
    size, together = i64(0), i64(0)
    for number in range(count):
        length = i64(lengths[min(u64(ids[number]), behind_last)])
        size += length
        together |= length
    return size if together < NOT_SHORT else i64(-1)


@kernel
def _exact_size(context, first, count):
    """How many bytes some ids stand for, whatever they are; -1 - n when id number n has no token."""
    size = i64(0)
    for number in range(first, first + count):
        length = _length(context, _id(context, number))
        if length == 0:
            return -1 - number
        size += length
    return size


@kernel
def _length(context, token):
    """The bytes of a token; 0 for an id without one."""
    fields = i64_at(context)
    if token < 0 or token >= fields[VOCAB_SIZE]:
        return i64(0)
    offsets = i64_at(fields[OFFSETS])
    return offsets[token + 1] - offsets[token]


@kernel
def _write_short(context, place, first, count):
    """Write a batch of tokens of up to 16 bytes; where it ends, or 0 if there is a longer one."""
    fields = i64_at(context)
    source = fields[IDS] + first * fields[ID_BYTES]
    if fields[ID_BYTES] == 2:
        return _write(context, place, u16_at(source), count)
    if fields[ID_BYTES] == 4:
        return _write(context, place, u32_at(source), count)
    return _write(context, place, u64_at(source), count)


@kernel
def _write(context, place, ids, count):
    fields = i64_at(context)
    rows, lengths, behind_last = fields[ROWS], u8_at(fields[TOKEN_LENGTHS]), u64(fields[VOCAB_SIZE])
    together = i64(0)
    for number in range(count):
        # Looked at anew: another thread may have changed an id since its length was added to the size.
        token = i64(min(u64(ids[number]), behind_last))
        length = i64(lengths[token])
        copy_16(place, rows + token * ROW_BYTES)
        place += length
        together |= length
    return place if together < NOT_SHORT else i64(0)


@kernel
def _write_exactly(context, place, end, first, count):
    """Write some tokens and not a byte more; where they end, or 0 if they do not fit."""
    fields = i64_at(context)
    for number in range(first, first + count):
        token = _id(context, number)
        length = _length(context, token)
        if length == 0 or length > end - place:
            return i64(0)
        copy(place, fields[TOKEN_TEXT] + i64_at(fields[OFFSETS])[token], length)
        place += length
    return place


@kernel
def _id(context, number):
    fields = i64_at(context)
    if fields[ID_BYTES] == 2:
        return i64(u16_at(fields[IDS])[number])
    if fields[ID_BYTES] == 4:
        return i64(u32_at(fields[IDS])[number])
    return i64_at(fields[IDS])[number]


@kernel
def decode_list(owner, items):
    """The bytes of a list of ids; None if one is no id. The owner is an int object, the address of a context.

    Nothing is written to that context: getting an id can run Python code, which may decode something else.
    """
    tables = number_of(owner)
    count = size_of(items)
    if count < 0:
        return i64(0)
    context = allocate(8 * (DECODE_FIELDS + count))
    if context == 0:
        return _none(tables)
    copy(context, tables, 8 * DECODE_FIELDS)
    fields = i64_at(context)
    fields[IDS], fields[ID_BYTES], fields[NUM_IDS] = context + 8 * DECODE_FIELDS, 8, count
    size = decoded_size(context) if _read(context, items) else i64(-1)
    if size < 0:
        data = _none(tables)
    else:
        data = new_bytes(0, size)
        if data != 0:
            fields[OUTPUT], fields[OUTPUT_SIZE] = content_of(data), size
            decode(context)
    release(context)
    return data


@kernel
def _read(context, items):
    """Put the values of a list to IDS; False if one is no int, or too large to be an id."""
    fields = i64_at(context)
    ids = i64_at(fields[IDS])
    for place in range(fields[NUM_IDS]):
        item = item_of(items, place)
        ids[place] = number_of(item) if item != 0 else i64(-1)
        if ids[place] < 0:
            forget_exception()
            return False
    return True


@kernel
def _none(context):
    none = i64_at(context)[NONE]
    own(none)
    return none
