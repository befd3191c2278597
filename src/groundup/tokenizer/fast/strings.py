"""One string at a time: a function of the interpreter's own kind, from a string to its ids.

For a short text a call through ctypes costs as much as the encoding. A method made by CPython's stable ABI (PEP 384)
costs a tenth of it. Such a call holds the interpreter's lock from begin to end, so one context serves all threads.
"""

import sys
from collections.abc import Callable
from typing import Any

from groundup.tokenizer.fast import encode_context as at
from groundup.tokenizer.fast import objects

_HAS_LOCK = getattr(sys, "_is_gil_enabled", lambda: True)()
_TABLES_ARE_FULL = (at.NEEDS_LINES, at.NEEDS_LONGS, at.NEEDS_LONG_TEXT, at.NEEDS_SPILL)
_MOST_DOUBLINGS = 16  # the bounds of the tables are reached before


class _Address(int):
    """The address of a context's fields, as the compiled method takes it, and the context that has to outlive it."""

    context: Any


class StringEncoder:
    """The ids of a short string, as a list or as the bytes of an array, by tables of its own.

    No Python code changes the context, since any thread may be about to use it: when the tables are full, another
    context takes its place.
    """

    def __init__(self, new_context: Callable[[int], Any]) -> None:
        self._new_context = new_context
        self._doublings = 0
        self._begin()

    def _begin(self) -> None:
        self._address = _Address((context := self._new_context(self._doublings)).address)
        self._address.context = context
        # None if it is too long, or room is lacking. UnicodeEncodeError for surrogates.
        self.to_list: Callable[[str], list[int] | None] = self._method("encode_string")
        self.to_bytes: Callable[[str], bytearray | None] = self._method("encode_string_to_bytes")

    def _method(self, name: str) -> Any:
        return objects.method("texts", name, self._address) if _HAS_LOCK else lambda text: None

    def make_room(self) -> None:
        """To be called after a None: more room in the tables, if it was that."""
        if self._address.context.fields[at.STATUS] in _TABLES_ARE_FULL:
            self._doublings = min(self._doublings + 1, _MOST_DOUBLINGS)
            self._begin()
