"""Many texts in one call, and Python's own objects: from a string to a list of ints without Python in between.

For a short text the work of getting in and out of Python costs more than the encoding. So one call takes the string
and gives the list, by functions of CPython's stable ABI (PEP 384), with the interpreter's lock held.
"""

from groundup.tokenizer.fast.blocks import next_text
from groundup.tokenizer.fast.context import DONE, FOUND, LENGTH, NEEDS_OUTPUT, POSITION, TEXT, WORDS
from groundup.tokenizer.fast.encode_context import (
    BUSY,
    ENCODE_TEXT,
    ENDS,
    LANE_BITS,
    LENGTHS,
    LONGEST_STRING,
    NONE,
    NUM_TEXTS,
    OBJECTS,
    OUTPUT,
    OUTPUT_COUNT,
    OUTPUT_SIZE,
    STATUS,
    STRING_LENGTH,
    TEXTS,
    TEXTS_DONE,
    WORDS_DONE,
)
from groundup.tokenizer.fast.interpreter import (
    bytes_of,
    item_of,
    new_bytearray,
    new_list,
    number_of,
    own,
    put_item,
    utf8_of,
)
from groundup.tokenizer.fast.machine import call, i64, i64_at, kernel, u16_at, u32_at

ENTRIES = (
    "encode_texts",
    "encode_block",
    "find_texts",
    "find_bytes",
    "encode_string",
    "encode_string_to_bytes",
    "list_ids",
)

_FAILED, _LACKS_ROOM, _ENCODED = range(3)  # with an exception set; with STATUS saying what must grow


@kernel
def encode_texts(context):
    """Encode the texts of the context from TEXTS_DONE on. DONE, or what must grow before this is called again.

    A text of negative length -1 - n is the special token of the id n.
    """
    fields = i64_at(context)
    texts, lengths, ends = i64_at(fields[TEXTS]), i64_at(fields[LENGTHS]), i64_at(fields[ENDS])
    while fields[TEXTS_DONE] < fields[NUM_TEXTS]:
        number = fields[TEXTS_DONE]
        if fields[POSITION] < 0:  # a new text
            fields[TEXT], fields[LENGTH], fields[POSITION] = texts[number], lengths[number], 0
            fields[WORDS] = fields[WORDS_DONE] = 0
        status = _put_id(context, -1 - fields[LENGTH]) if fields[LENGTH] < 0 else call(fields[ENCODE_TEXT], context)
        if status != DONE:
            return status
        ends[number] = fields[OUTPUT_COUNT]
        fields[TEXTS_DONE] = number + 1
        fields[POSITION] = -1
    return i64(DONE)


@kernel
def encode_block(context):
    """Encode a block, texts and special tokens, from where it is. DONE, or what must grow before another call."""
    fields = i64_at(context)
    while True:
        status = call(fields[ENCODE_TEXT], context)
        if status == DONE and fields[FOUND] >= 0:
            status = _put_id(context, fields[FOUND])
        if status != DONE:
            return status
        if not next_text(fields):
            return i64(DONE)


@kernel
def _put_id(context, token):
    fields = i64_at(context)
    count = fields[OUTPUT_COUNT]
    if count + 64 > fields[OUTPUT_SIZE]:
        return i64(NEEDS_OUTPUT)
    if fields[LANE_BITS] == 16:
        u16_at(fields[OUTPUT])[count] = token
    else:
        u32_at(fields[OUTPUT])[count] = token
    fields[OUTPUT_COUNT] = count + 1
    return i64(DONE)


@kernel
def find_texts(context, strings):
    """Put the addresses and lengths of a list's strings into TEXTS and LENGTHS; None, or an exception."""
    fields = i64_at(context)
    for number in range(fields[NUM_TEXTS]):
        string = item_of(strings, number)
        if string == 0:
            return string
        text = utf8_of(string, fields[LENGTHS] + 8 * number)
        if text == 0:
            return text
        i64_at(fields[TEXTS])[number] = text
    return _none(context)


@kernel
def find_bytes(context, items):
    """The same for a list of bytes objects."""
    fields = i64_at(context)
    for number in range(fields[NUM_TEXTS]):
        data = item_of(items, number)
        if data == 0 or bytes_of(data, fields[TEXTS] + 8 * number, fields[LENGTHS] + 8 * number) < 0:
            return i64(0)
    return _none(context)


@kernel
def encode_string(owner, string):
    """The ids of a string as a list; None if it is too long, or room is lacking (STATUS says which).

    The owner is an int object, the address of the context. Making a list can start the collection of garbage, which can
    run any Python code and let other threads run: whoever then finds the context at work is told None.
    """
    context = number_of(owner)
    fields = i64_at(context)
    if fields[BUSY] != 0:
        return _none(context)
    fields[BUSY] = 1
    outcome = _encode_short(context, string)
    if outcome == _ENCODED:
        answer = list_ids(context, 0, fields[OUTPUT_COUNT])
    else:
        answer = _none(context) if outcome == _LACKS_ROOM else i64(0)
    fields[BUSY] = 0
    return answer


@kernel
def encode_string_to_bytes(owner, string):
    """The same as a bytearray, of 2 or 4 bytes for each id."""
    context = number_of(owner)
    fields = i64_at(context)
    if fields[BUSY] != 0:
        return _none(context)
    outcome = _encode_short(context, string)
    if outcome == _ENCODED:
        return new_bytearray(fields[OUTPUT], fields[OUTPUT_COUNT] * (fields[LANE_BITS] >> 3))
    return _none(context) if outcome == _LACKS_ROOM else i64(0)


@kernel
def _encode_short(context, string):
    """Encode a string to OUTPUT."""
    fields = i64_at(context)
    fields[STATUS] = DONE
    text = utf8_of(string, context + 8 * STRING_LENGTH)
    if text == 0:
        return i64(_FAILED)
    if fields[STRING_LENGTH] > LONGEST_STRING:
        return i64(_LACKS_ROOM)
    fields[TEXT], fields[LENGTH], fields[POSITION] = text, fields[STRING_LENGTH], 0
    fields[WORDS] = fields[WORDS_DONE] = fields[OUTPUT_COUNT] = 0
    fields[STATUS] = call(fields[ENCODE_TEXT], context)
    return i64(_ENCODED) if fields[STATUS] == DONE else i64(_LACKS_ROOM)


@kernel
def list_ids(context, first, end):
    """The ids from `first` to `end` of the output as a list."""
    fields = i64_at(context)
    objects = i64_at(fields[OBJECTS])
    made = new_list(end - first)
    if made == 0:
        return made
    narrow, wide = u16_at(fields[OUTPUT]), u32_at(fields[OUTPUT])
    is_narrow = fields[LANE_BITS] == 16
    for place in range(first, end):
        item = objects[i64(narrow[place]) if is_narrow else i64(wide[place])]
        own(item)
        put_item(made, place - first, item)
    return made


@kernel
def _none(context):
    none = i64_at(context)[NONE]
    own(none)
    return none
