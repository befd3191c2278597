"""One string at a time: a function of the interpreter's own kind, from a string to its ids.

For a short text a call through ctypes costs as much as the encoding. A method made by CPython's stable ABI (PEP 384)
costs a tenth of it. Such a call holds the interpreter's lock, so one context serves all threads; should other code come
to run in the middle of it, in a collection of garbage, that code finds the context at work and goes another way.
"""

from collections.abc import Callable
from typing import Any

from groundup.tokenizer.fast import encode_context as at
from groundup.tokenizer.fast import objects

_TABLES_ARE_FULL = (at.NEEDS_LINES, at.NEEDS_LONGS, at.NEEDS_LONG_TEXT, at.NEEDS_SPILL)
_MOST_DOUBLINGS = 16  # the bounds of the tables are reached before


class StringEncoder:
    """The ids of a short string, as a list or as the bytes of an array, by tables of its own.

    `new_context` makes a context whose tables begin so many times twice as large. No Python code changes a context,
    since any thread may be about to use it: when the tables are full, another one takes its place.
    """

    def __init__(self, new_context: Callable[[int], Any]) -> None:
        self._new_context = new_context
        self._doublings = 0
        self._begin()

    def _begin(self) -> None:
        context = self._new_context(self._doublings)
        address = objects.Address.of(context.address, context)
        # None if it is too long, or room is lacking. UnicodeEncodeError for surrogates.
        self.to_list: Callable[[str], list[int] | None] = objects.method("texts", "encode_string", address)
        self.to_bytes: Callable[[str], bytearray | None] = objects.method("texts", "encode_string_to_bytes", address)
        self._context = context

    def make_room(self) -> None:
        """To be called after a None: more room in the tables, if it was that."""
        if self._context.fields[at.STATUS] in _TABLES_ARE_FULL:
            self._doublings = min(self._doublings + 1, _MOST_DOUBLINGS)
            self._begin()
