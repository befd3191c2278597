"""Functions of CPython's stable ABI (PEP 384) for kernels, to be called with the interpreter's lock held.

Objects are addresses.
"""

from typing import Any

from llvmlite import ir
from numba import types

from groundup.tokenizer.fast.machine import intrinsic


def _function(name: str, returns: Any, takes: tuple[Any, ...]) -> Any:
    def typer(typingctx: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            module = builder.module
            kinds = [context.get_value_type(kind) for kind in takes]
            kind = ir.FunctionType(
                context.get_value_type(returns) if returns is not types.void else ir.VoidType(), kinds
            )
            function = module.globals.get(name) or ir.Function(module, kind, name)
            result = builder.call(function, args)
            return context.get_dummy_value() if returns is types.void else result

        return returns(*takes), generate

    return typer


@intrinsic
def utf8_of(typingctx: Any, string: Any, length: Any) -> Any:
    """The address of a string's UTF-8, its length going to an address; 0 with an exception set if it has none."""
    return _function("PyUnicode_AsUTF8AndSize", types.int64, (types.int64, types.int64))(typingctx)


@intrinsic
def bytes_of(typingctx: Any, data: Any, address: Any, length: Any) -> Any:
    """Put where the content of a bytes object is, and its length, to two addresses; -1 with an exception set for what
    is none."""
    return _function("PyBytes_AsStringAndSize", types.int32, (types.int64,) * 3)(typingctx)


@intrinsic
def size_of(typingctx: Any, items: Any) -> Any:
    """The length of a list; -1 with an exception set for what is none."""
    return _function("PyList_Size", types.int64, (types.int64,))(typingctx)


@intrinsic
def item_of(typingctx: Any, items: Any, place: Any) -> Any:
    """An item of a list, of which the list keeps the reference; 0 with an exception set for a place that is none."""
    return _function("PyList_GetItem", types.int64, (types.int64, types.int64))(typingctx)


@intrinsic
def number_of(typingctx: Any, item: Any) -> Any:
    """The value of an int object; -1 with an exception set for what is none, or too large."""
    return _function("PyLong_AsLongLong", types.int64, (types.int64,))(typingctx)


@intrinsic
def new_list(typingctx: Any, length: Any) -> Any:
    """A list of so many empty places."""
    return _function("PyList_New", types.int64, (types.int64,))(typingctx)


@intrinsic
def put_item(typingctx: Any, to: Any, place: Any, item: Any) -> Any:
    """Fill a place of a new list; takes over the reference to the item."""
    return _function("PyList_SetItem", types.int64, (types.int64, types.int64, types.int64))(typingctx)


@intrinsic
def new_bytes(typingctx: Any, address: Any, size: Any) -> Any:
    """A bytes object, a copy of so many bytes; to be filled if the address is 0."""
    return _function("PyBytes_FromStringAndSize", types.int64, (types.int64, types.int64))(typingctx)


@intrinsic
def new_bytearray(typingctx: Any, address: Any, size: Any) -> Any:
    """A bytearray, a copy of so many bytes."""
    return _function("PyByteArray_FromStringAndSize", types.int64, (types.int64, types.int64))(typingctx)


@intrinsic
def content_of(typingctx: Any, data: Any) -> Any:
    """The address of what a bytes object holds."""
    return _function("PyBytes_AsString", types.int64, (types.int64,))(typingctx)


@intrinsic
def allocate(typingctx: Any, size: Any) -> Any:
    """Memory from Python's allocator; 0 if there is none."""
    return _function("PyMem_Malloc", types.int64, (types.int64,))(typingctx)


@intrinsic
def release(typingctx: Any, address: Any) -> Any:
    """Give memory back."""
    return _function("PyMem_Free", types.void, (types.int64,))(typingctx)


@intrinsic
def own(typingctx: Any, item: Any) -> Any:
    """Take a reference to an object."""
    return _function("Py_IncRef", types.void, (types.int64,))(typingctx)


@intrinsic
def forget_exception(typingctx: Any) -> Any:
    """Clear the exception that is set, if one is."""
    return _function("PyErr_Clear", types.void, ())(typingctx)
