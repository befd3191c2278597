"""A GGUF file opened for reading: its metadata, and its tensors one at a time, dequantised.

The file is mapped into memory, so that what is not asked for is not read. Nothing is allocated for a tensor before
the whole table was held against the size of the file.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.gguf.blocks import Kind, dequantise, kind_of
from groundup.gguf.metadata import Cursor, Header, read_header

MAX_TENSORS, MAX_DIMENSIONS, MAX_NAME_BYTES = 1 << 14, 4, 256
SMALLEST_INFO = 8 + 4 + 8 + 4 + 8  # length of the name, number of dimensions, one of them, type, offset
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 16


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file. `shape` is row-major, as in NumPy: GGUF writes the sizes in the other order.

    `begin` and `end` count bytes from the beginning of the file.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    begin: int
    end: int


class GGUFFile:
    """The tensors and metadata of a file; a context manager, since it stays open.

    `metadata` has every number and text, and the lists whose key does not begin with "tokenizer." (see
    `groundup.tokenizer.gguf` for those). ValueError, naming file and field, for anything that the file's own size
    contradicts, and for tensors of a type that is not one of `groundup.gguf.KINDS`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._view = _mapped(self.path)
        try:
            header = read_header(self._view, lambda key: not key.startswith("tokenizer."))
            self.metadata: dict[str, Any] = header.values
            self.tensors: dict[str, TensorInfo] = _read_table(self._view, header)
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.path}: {error}") from error

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor of this name as float32, of the file's shape, in memory of its own."""
        info = self.tensors[name]
        return dequantise(info.kind, self._view[info.begin : info.end], info.shape)

    def close(self) -> None:
        """Give the file back."""
        self._view.close()

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        if not file.read(1):
            raise ValueError(f"{path}: the file is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_table(view: mmap.mmap, header: Header) -> dict[str, TensorInfo]:
    cursor, count = Cursor(view, header.end), header.num_tensors
    if count > min(MAX_TENSORS, cursor.left // SMALLEST_INFO):
        raise ValueError(f"{count} tensors are announced; at most {MAX_TENSORS} are read, and {cursor.left} bytes left")
    alignment = _alignment(header)
    infos = [_read_info(cursor) for _ in range(count)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, kind, shape, offset in infos:
        if name in tensors:
            raise ValueError(f"tensor {name!r} occurs twice")
        tensors[name] = _placed(name, kind, shape, offset, start, alignment, len(view))
    _check_overlaps(tensors)
    return tensors


def _alignment(header: Header) -> int:
    """Tensors begin at multiples of this many bytes."""
    value = header.values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise ValueError(f"general.alignment: {value!r:.40}; expected a power of two from 8 to {MAX_ALIGNMENT}")
    return value


def _read_info(cursor: Cursor) -> tuple[str, Kind, tuple[int, ...], int]:
    name = cursor.string("the name of a tensor")
    if len(name) > MAX_NAME_BYTES:
        raise ValueError(f"tensor {name[:40]!r}...: a name of {len(name)} characters; at most {MAX_NAME_BYTES}")
    dimensions = cursor.number(4)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"tensor {name!r}: {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number(10) for _ in range(dimensions))[::-1]
    number, offset = cursor.number(4), cursor.number(10)
    try:
        return name, kind_of(number), shape, offset
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from None


def _placed(
    name: str, kind: Kind, shape: tuple[int, ...], offset: int, start: int, alignment: int, size: int
) -> TensorInfo:
    """The tensor's place in the file. Python's integers do not overflow, so its size can simply be computed."""
    where = f"tensor {name!r}"
    if min(shape) < 1:
        raise ValueError(f"{where}: shape {list(shape)}; expected sizes of at least 1")
    if shape[-1] % kind.size:
        raise ValueError(f"{where}: rows of {shape[-1]} values are not whole blocks of {kind.size}, as {kind.name} has")
    if offset % alignment:
        raise ValueError(f"{where}: its offset {offset} is no multiple of the alignment, {alignment}")
    begin = start + offset
    end = begin + kind.nbytes(math.prod(shape))
    if end > size:
        raise ValueError(f"{where}: {kind.name} of shape {list(shape)} ends at byte {end}, the file at {size}")
    return TensorInfo(name, kind, shape, begin, end)


def _check_overlaps(tensors: dict[str, TensorInfo]) -> None:
    end, before = 0, ""
    for info in sorted(tensors.values(), key=lambda info: info.begin):
        if info.begin < end:
            raise ValueError(f"tensor {info.name!r}: begins at byte {info.begin}, inside {before!r}")
        end, before = info.end, info.name
