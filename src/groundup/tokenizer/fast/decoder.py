"""The Python side of decoding: arrays or lists of ids in, bytes out."""

import ctypes
from collections.abc import Callable

import numpy as np

from groundup.tokenizer.fast import decode_context as at
from groundup.tokenizer.fast import objects
from groundup.tokenizer.fast.aligned import aligned_zeros
from groundup.tokenizer.fast.vocabulary_tables import Tables

_new_bytes = objects.python_function("PyBytes_FromStringAndSize", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
_content_of = objects.python_function("PyBytes_AsString", ctypes.c_void_p, ctypes.py_object)


class FastDecoder:
    """Decodes by a table of the tokens' bytes; any number of threads may use it."""

    def __init__(self, tables: Tables) -> None:
        lengths = np.diff(tables.offsets)
        self._arrays = {
            at.ROWS: _first_bytes(tables.token_text, tables.offsets),
            at.TOKEN_LENGTHS: _short_lengths(lengths),
            at.OFFSETS: tables.offsets,
            at.TOKEN_TEXT: tables.token_text,
        }
        self._fields = np.zeros(at.DECODE_FIELDS, np.int64)
        for field, array in self._arrays.items():
            self._fields[field] = array.ctypes.data
        self._fields[[at.VOCAB_SIZE, at.NONE]] = lengths.size, id(None)
        self._decoded_size = objects.entry("decode", "decoded_size")
        self._decode = objects.entry("decode", "decode")
        # The bytes of a list; None if an item is no id.
        self.decode_list: Callable[[list[int]], bytes | None] = objects.method(
            "decode", "decode_list", objects.Address.of(self._fields.ctypes.data, (self._fields, self._arrays))
        )

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of ids (integers, one axis). IndexError with the place of an id that is none."""
        if ids.dtype not in (np.uint16, np.uint32, np.int64):
            ids = ids.astype(np.int64)
        ids = np.ascontiguousarray(ids)
        fields = self._fields.copy()
        fields[[at.IDS, at.ID_BYTES, at.NUM_IDS]] = ids.ctypes.data, ids.itemsize, ids.size
        size = self._decoded_size(fields.ctypes.data)
        if size < 0:
            raise IndexError(-1 - size)
        data = _new_bytes(None, size)
        fields[[at.OUTPUT, at.OUTPUT_SIZE]] = _content_of(data), size
        if self._decode(fields.ctypes.data) != size:
            raise RuntimeError("ids: they were changed while they were decoded")
        return data


def _first_bytes(text: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The first 16 bytes of each token, and whatever follows where it is shorter. uint8 [tokens + 1, 16]"""
    tokens = offsets.size - 1
    rows = aligned_zeros((tokens + 1) * at.ROW_BYTES // 8).view(np.uint8).reshape(-1, at.ROW_BYTES)
    rows[:tokens] = text[np.minimum(offsets[:-1, None] + np.arange(at.ROW_BYTES), text.size - 1)]
    return rows


def _short_lengths(lengths: np.ndarray) -> np.ndarray:
    """The length of each token of up to 16 bytes, NOT_SHORT for every other. uint8 [tokens + 1]"""
    short = np.full(lengths.size + 1, at.NOT_SHORT, np.uint8)
    is_short = (lengths > 0) & (lengths <= at.ROW_BYTES)
    short[: lengths.size][is_short] = lengths[is_short]
    return short
