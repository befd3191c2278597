"""The Python side of decoding: arrays of ids in, bytes out."""

import ctypes

import numpy as np

from groundup.tokenizer.fast import decode_context as at
from groundup.tokenizer.fast import objects
from groundup.tokenizer.fast.vocabulary_tables import Tables

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
_address_of_bytes = ctypes.pythonapi.PyBytes_AsString
_address_of_bytes.restype, _address_of_bytes.argtypes = ctypes.c_void_p, (ctypes.py_object,)


class FastDecoder:
    """Decodes by a table of the tokens' bytes; any number of threads may use it."""

    def __init__(self, tables: Tables) -> None:
        self._text, self._offsets = tables.token_text, tables.offsets
        lengths = np.diff(self._offsets)
        self._lengths = np.where(lengths == 0, -1, lengths).astype(np.int32)  # no token is empty: the id is unused
        self._rows = _first_bytes(self._text, self._offsets)
        self._decoded_size = objects.entry("decode", "decoded_size")
        self._decode = objects.entry("decode", "decode")

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of ids (integers, one axis). IndexError with the place of an id that is none."""
        if ids.dtype not in (np.uint16, np.uint32, np.int64):
            ids = ids.astype(np.int64)
        ids = np.ascontiguousarray(ids)
        fields = np.zeros(at.DECODE_FIELDS, np.int64)
        fields[[at.IDS, at.ID_BYTES, at.NUM_IDS]] = ids.ctypes.data, ids.itemsize, ids.size
        fields[[at.ROWS, at.TOKEN_LENGTHS, at.VOCAB_SIZE, at.OFFSETS, at.TOKEN_TEXT]] = (
            self._rows.ctypes.data,
            self._lengths.ctypes.data,
            self._lengths.size,
            self._offsets.ctypes.data,
            self._text.ctypes.data,
        )
        size = self._decoded_size(fields.ctypes.data)
        if size < 0:
            raise IndexError(-1 - size)
        data = _new_bytes(None, size)
        fields[[at.OUTPUT, at.OUTPUT_SIZE]] = _address_of_bytes(data), size
        self._decode(fields.ctypes.data)
        return data


def _first_bytes(text: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The first 16 bytes of each token, and whatever follows where it is shorter. uint8 [tokens, 16]"""
    return text[np.minimum(offsets[:-1, None] + np.arange(at.ROW_BYTES), text.size - 1)]
