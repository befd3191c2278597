"""Writing a GGUF file: metadata, a table of tensors, then their bytes, each encoded only when its turn comes."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.files import replacing
from groundup.gguf.blocks import Kind, quantise
from groundup.gguf.metadata import header_bytes, pack_string
from groundup.gguf.reading import DEFAULT_ALIGNMENT


def write_gguf(
    path: str | Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[Kind, NDArray[np.float32]]]
) -> None:
    """Write a file of version 3 under `path`, atomically; see `header_bytes` for the values that metadata may have.

    A tensor is the format to write it in, and its values. ValueError names one that does not fit its format.
    """
    table, at = [], 0
    for name, (kind, values) in tensors.items():
        sizes = struct.pack(f"<{values.ndim}Q", *values.shape[::-1])
        table.append(pack_string(name) + struct.pack("<I", values.ndim) + sizes + struct.pack("<IQ", kind.number, at))
        at += _padded(kind.nbytes(values.size))
    head = header_bytes(metadata, len(tensors)) + b"".join(table)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(head.ljust(_padded(len(head)), b"\0"))
        for name, (kind, values) in tensors.items():
            data = _encoded(name, kind, values)
            file.write(data.ljust(_padded(len(data)), b"\0"))


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _encoded(name: str, kind: Kind, values: NDArray[np.float32]) -> bytes:
    try:
        return quantise(kind, values)
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from None
