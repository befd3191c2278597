"""Many texts in one call, and Python's own objects: from a string to a list of ints without Python in between.

For a short text the work of getting in and out of Python costs more than the encoding. So one call takes the string
and gives the list, by functions of CPython's stable ABI (PEP 384), with the interpreter's lock held.
"""

from typing import Any

from llvmlite import ir
from numba import types

from groundup.tokenizer.fast.context import DONE, LENGTH, NEEDS_OUTPUT, POSITION, TEXT, WORDS
from groundup.tokenizer.fast.encode_context import (
    ENCODE_TEXT,
    ENDS,
    LANE_BITS,
    LENGTHS,
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
from groundup.tokenizer.fast.machine import call, i64, i64_at, intrinsic, kernel, u16_at, u32_at

ENTRIES = ("encode_texts", "find_texts", "encode_string", "list_ids")

LONGEST_STRING = 1 << 16  # bytes: for a longer text other threads should not have to wait


def _python_function(name: str, returns: Any, takes: tuple[Any, ...]) -> Any:
    def typer(typingctx: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            module = builder.module
            kinds = [context.get_value_type(kind) for kind in takes]
            kind = ir.FunctionType(ir.VoidType() if returns is types.void else ir.IntType(64), kinds)
            function = module.globals.get(name) or ir.Function(module, kind, name)
            result = builder.call(function, args)
            return context.get_dummy_value() if returns is types.void else result

        return returns(*takes), generate

    return typer


@intrinsic
def utf8_of(typingctx: Any, string: Any, length: Any) -> Any:
    """The address of a string's UTF-8, its length going to an address; 0 with an exception set if it has none."""
    return _python_function("PyUnicode_AsUTF8AndSize", types.int64, (types.int64, types.int64))(typingctx)


@intrinsic
def item_of(typingctx: Any, items: Any, place: Any) -> Any:
    """An item of a list, of which the list keeps the reference."""
    return _python_function("PyList_GetItem", types.int64, (types.int64, types.int64))(typingctx)


@intrinsic
def new_list(typingctx: Any, length: Any) -> Any:
    """A list of so many empty places."""
    return _python_function("PyList_New", types.int64, (types.int64,))(typingctx)


@intrinsic
def put_item(typingctx: Any, to: Any, place: Any, item: Any) -> Any:
    """Fill a place of a new list; takes over the reference to the item."""
    return _python_function("PyList_SetItem", types.int64, (types.int64, types.int64, types.int64))(typingctx)


@intrinsic
def own(typingctx: Any, item: Any) -> Any:
    """Take a reference to an object."""
    return _python_function("Py_IncRef", types.void, (types.int64,))(typingctx)


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
def encode_string(context, string):
    """The ids of a string as a list; None if it is too long, or room is lacking (STATUS says which)."""
    fields = i64_at(context)
    text = utf8_of(string, context + 8 * STRING_LENGTH)
    if text == 0:
        return i64(0)
    fields[STATUS] = DONE
    if fields[STRING_LENGTH] > LONGEST_STRING:
        return _none(context)
    fields[TEXT], fields[LENGTH], fields[POSITION] = text, fields[STRING_LENGTH], 0
    fields[WORDS] = fields[WORDS_DONE] = fields[OUTPUT_COUNT] = 0
    fields[STATUS] = call(fields[ENCODE_TEXT], context)
    if fields[STATUS] != DONE:
        return _none(context)
    return list_ids(context, 0, fields[OUTPUT_COUNT])


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
