"""What stands in front of a GGUF file's tensors: keys with values of thirteen types, read and written.

    "GGUF", version, number of tensors, number of entries, then per entry: key, type of value, value

Numbers are little-endian; a text is its length in 8 bytes and UTF-8; a list is the type of its items, their number,
and the items. Versions 2 and 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import numpy as np

MAGIC = b"GGUF"
# What a hostile file may cost: a text in a list takes up to some 60 bytes of memory, so these bound it to 64 MB.
MAX_METADATA_BYTES, MAX_ENTRIES, MAX_ITEMS = 1 << 25, 1 << 12, 1 << 20

SCALARS: dict[int, str] = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Header:
    """The metadata of a file: `values` by key, and where the table of its `num_tensors` tensors begins.

    Lists of numbers are NumPy arrays, lists of texts Python lists; those that nobody wanted are left out.
    """

    values: dict[str, Any]
    num_tensors: int
    end: int


def read_header(view: mmap | bytes, wants_list: Callable[[str], bool] = lambda key: True) -> Header:
    """Read the metadata; `wants_list` says of a key whether its value is worth keeping if it is a list.

    ValueError (naming the key, or the byte) for what is not GGUF version 2 or 3, for a value of an unknown type, a
    text that is not UTF-8, a key that is there twice, and a size that is larger than what is left.
    """
    if view[:4] != MAGIC:
        raise ValueError("not a GGUF file")
    cursor = Cursor(view, len(MAGIC))
    version, num_tensors, entries = cursor.number(4), cursor.number(10), cursor.number(10)
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}; expected 2 or 3, little-endian")
    if entries > MAX_ENTRIES:
        raise ValueError(f"{entries} entries of metadata; at most {MAX_ENTRIES}")
    values: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.string("a key")
        value = cursor.value(cursor.number(4), key, wants_list(key))
        if key in values:
            raise ValueError(f"the key {key[:80]!r} occurs twice")
        values[key] = value
    kept = {key: value for key, value in values.items() if value is not None}
    return Header(kept, num_tensors, cursor.at)


class Cursor:
    """A place in a file, and the reading from there. Every size is checked before anything of that size is read."""

    def __init__(self, view: mmap | bytes, at: int) -> None:
        self._view, self.at = view, at
        self._end = min(len(view), MAX_METADATA_BYTES)
        self._items = 0

    @property
    def left(self) -> int:
        """The bytes from here to the end of what may be metadata."""
        return self._end - self.at

    def number(self, kind: int) -> Any:
        """The next number, of one of the types in `SCALARS`."""
        layout = struct.Struct("<" + SCALARS[kind])
        return layout.unpack_from(self._view, self._take(layout.size))[0]

    def string(self, where: str) -> str:
        """The next text."""
        size = self.number(10)
        start = self._take(size)
        try:
            return self._view[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {start}, {where[:80]!r}: not UTF-8 ({error.reason})") from None

    def value(self, kind: int, key: str, wanted: bool) -> Any:
        """The next value; None in place of a list that is not wanted."""
        if kind in SCALARS:
            return self.number(kind)
        if kind == STRING:
            return self.string(key)
        if kind != ARRAY:
            raise ValueError(f"{key[:80]!r}: no kind of value has the number {kind}")
        item, count = self.number(4), self.number(10)
        if count > MAX_ITEMS:
            raise ValueError(f"{key[:80]!r}: {count} items; at most {MAX_ITEMS}")
        if item in SCALARS:
            return self._numbers(item, count, wanted)
        if item == STRING:
            return self._strings(key, count, wanted)
        raise ValueError(f"{key[:80]!r}: a list of kind {item} is not supported")

    def _take(self, size: int) -> int:
        """Where the next `size` bytes start, which are then behind us."""
        start = self.at
        if size > self.left:
            raise ValueError(f"byte {start}: {size} bytes are announced, {self.left} are left of the metadata")
        self.at += size
        return start

    def _numbers(self, kind: int, count: int, wanted: bool) -> np.ndarray | None:
        layout = np.dtype(SCALARS[kind]).newbyteorder("<")
        start = self._take(layout.itemsize * count)
        return np.frombuffer(self._view[start : self.at], layout) if wanted else None

    def _strings(self, key: str, count: int, wanted: bool) -> list[str] | None:
        # As `string` does it, without a call for each: these lists are most of the metadata.
        self._items += count
        if self._items > MAX_ITEMS:
            raise ValueError(f"{key[:80]!r}: {self._items} texts with the lists before; at most {MAX_ITEMS}")
        view, at, end = self._view, self.at, self._end
        found: list[str] = []
        try:
            for _ in range(count):
                start = at + _LENGTH.size
                size = _LENGTH.unpack_from(view, at)[0] if start <= end else 0
                at = start + size
                if at > end:
                    raise ValueError(f"byte {start}, {key[:80]!r}: {size} bytes are announced, more than are left")
                if wanted:
                    found.append(view[start:at].decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{key[:80]!r}: {error.object[:40]!r} is not UTF-8") from None
        self.at = at
        return found if wanted else None


# writing ---------------------------------------------------------------------------------------------------------


def header_bytes(values: Mapping[str, Any], num_tensors: int) -> bytes:
    """The beginning of a file, version 3, up to the table of tensors.

    A text, bool, int (written as uint32), float (float32), NumPy scalar or array (their own type), or a list of texts.
    ValueError names the key of anything else.
    """
    entries = (pack_string(key) + _packed(value, key) for key, value in values.items())
    return MAGIC + struct.pack("<IQQ", 3, num_tensors, len(values)) + b"".join(entries)


def pack_string(text: str) -> bytes:
    """A text with its length in front."""
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


def _packed(value: Any, key: str) -> bytes:
    """The number of a value's type, and the value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + pack_string(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(pack_string, value))
    array = _typed(value, key)
    kind = next(kind for kind, code in SCALARS.items() if array.dtype == code)
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim == 0:
        return struct.pack("<I", kind) + data
    return struct.pack("<IIQ", ARRAY, kind, array.size) + data


def _typed(value: Any, key: str) -> np.ndarray:
    """A number or numbers in the type that is written."""
    if type(value) is int and 0 <= value < 1 << 32:
        return np.array(value, np.uint32)
    if type(value) is float:
        return np.array(value, np.float32)
    array = np.asarray(value)
    if isinstance(value, (bool, np.ndarray, np.generic)) and any(array.dtype == code for code in SCALARS.values()):
        return array
    raise ValueError(f"{key}: {value!r:.80} has no type that GGUF knows; expected text, bool, uint32, float or texts")
