"""Reading from a checkpoint of many ranks: of each file, the bytes that are needed and no others.

    stored   rows 0-3 in rank-00000, rows 4-7 in rank-00001        (saved under tensor=2)
    wanted   elements 20 to 40 of the whole, a flat shard          (loaded under shard=N)
    read     what both have in common, block by block, out of the mapped files

Files are mapped into memory, so that what is not touched is not read.
"""

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from groundup.parallel.checkpoint_index import (
    CHUNK_BYTES,
    Entry,
    Stored,
    dtype_name,
    every_part,
    header_sha256,
    read_index,
)
from groundup.parallel.regions import Box, Region, common, sizes, volume, within
from groundup.tensorfile import validate_header


@dataclass(frozen=True)
class Piece:
    """A tensor in memory that is a part of a whole one: with its box's sizes, or for a run with as many elements."""

    tensor: Tensor
    shape: tuple[int, ...]
    region: Region

    @classmethod
    def whole(cls, tensor: Tensor) -> "Piece":
        return cls(tensor, tuple(tensor.shape), Region.whole(tensor.shape))

    def blocks(self) -> Iterator[tuple[Box, Tensor]]:
        """Boxes of the whole tensor, and the memory that each has here."""
        if self.region.run is None:
            if self.region.numel:
                yield self.region.box, self.tensor.view(sizes(self.region.box))
            return
        memory = self.tensor.view(-1)
        for box, at in self.region.blocks:
            yield box, memory[at : at + volume(box)].view(sizes(box))


class StoredParts:
    """A checkpoint's folder, opened for reading. Raises ValueError as `read_index` does.

    `check` holds against the files all that a piece needs, and `copy` takes it, so that one who checks all pieces first
    changes nothing where anything is wrong.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index = read_index(self.path)
        self._files: dict[str, _Mapped] = {}
        self._shared: dict[tuple[str, Box], list[tuple[Box, Tensor, tuple[Stored, int]]]] = {}

    def check(self, name: str, piece: Piece) -> None:
        """Raise ValueError unless the tensor is that of the piece, and what it needs is undamaged and finite."""
        entry = self._entry(name)
        if (entry.shape, entry.dtype) != (piece.shape, piece.tensor.dtype):
            raise ValueError(
                f"{self.path}: {name} is {_describe(entry.dtype, entry.shape)}; "
                f"expected {_describe(piece.tensor.dtype, piece.shape)}"
            )
        self._verify(name, entry, piece.region)

    @torch.no_grad()
    def copy(self, name: str, piece: Piece) -> None:
        """Overwrite the piece's memory by what is stored."""
        entry = self._entry(name)
        for box, memory in piece.blocks():
            for shared, values, _ in self._stored(name, entry, box):
                memory[within(shared, box)].copy_(values)

    def whole(self, name: str) -> Tensor:
        """A whole tensor, checked before it takes any memory. ValueError where there is none of that name."""
        entry = self._entry(name)
        self._verify(name, entry, Region.whole(entry.shape))
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self.copy(name, Piece.whole(tensor))
        return tensor

    def verify(self) -> None:
        """Read everything, as `check` reads what it needs."""
        for name, entry in self.index.tensors.items():
            self._verify(name, entry, Region.whole(entry.shape))
        for name in self.index.files:
            self._file(name)

    def _entry(self, name: str) -> Entry:
        if name not in self.index.tensors:
            raise ValueError(f"{self.path}: no tensor {name!r:.100}")
        return self.index.tensors[name]

    def _verify(self, name: str, entry: Entry, region: Region) -> None:
        for box, _ in region.blocks:
            for _, values, (part, start) in self._stored(name, entry, box):
                self._file(part.file).verify(name, part, start, values)
                # Types of one byte have no infinity, or no test for it.
                if entry.dtype.is_floating_point and entry.dtype.itemsize > 1 and not bool(values.isfinite().all()):
                    raise ValueError(f"{self.path}: {name} holds NaN or infinity")

    def _stored(self, name: str, entry: Entry, box: Box) -> list[tuple[Box, Tensor, tuple[Stored, int]]]:
        """Boxes that make up this one, what is stored of each, and of which part's block it is."""
        if (name, box) not in self._shared:
            self._shared[name, box] = [
                (shared, self._file(part.file).values(name, start, block)[within(shared, block)], (part, start))
                for part in entry.parts
                for block, start in part.region.blocks
                if (shared := common(block, box)) is not None
            ]
        return self._shared[name, box]

    def _file(self, name: str) -> "_Mapped":
        if name not in self._files:
            parts = {tensor: (e, part) for tensor, e, part in every_part(self.index) if part.file == name}
            self._files[name] = _Mapped(self.path / name, self.index.files[name].header_sha256, parts)
        return self._files[name]


class _Mapped:
    """A file in memory as far as it is read. Raises ValueError where it is not the one that the index describes."""

    def __init__(self, path: Path, header: str, parts: dict[str, tuple[Entry, Stored]]) -> None:
        if header_sha256(path) != header:
            raise ValueError(f"{path}: its header changed since it was saved")
        self.path, self._entries = path, validate_header(path)
        found = {name: (entry.dtype, entry.shape) for name, entry in self._entries.items()}
        if found != {name: (entry.dtype, stored_shape(part.region)) for name, (entry, part) in parts.items()}:
            raise ValueError(f"{path}: its tensors are not those that the index lists")
        with open(path, "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._start = len(self._memory) - max((entry.end for entry in self._entries.values()), default=0)
        self._verified: set[tuple[str, int]] = set()

    def values(self, name: str, start: int, block: Box) -> Tensor:
        """The block that begins with element `start` of a stored part."""
        entry = self._entries[name]
        at = self._start + entry.begin + start * entry.dtype.itemsize
        return torch.frombuffer(self._memory, dtype=entry.dtype, count=volume(block), offset=at).view(sizes(block))

    def verify(self, name: str, part: Stored, start: int, values: Tensor) -> None:
        """Hold against checksums the bytes from the first to the last of `values`, a view of the block at `start`."""
        entry = self._entries[name]
        first = start + int(values.storage_offset())
        last = first + sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
        width = entry.dtype.itemsize
        chunks = range(first * width // CHUNK_BYTES, int(last) * width // CHUNK_BYTES + 1)
        data = memoryview(self._memory)[self._start + entry.begin : self._start + entry.end]
        for chunk in chunks:
            if (name, chunk) not in self._verified:
                if zlib.crc32(data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]) != part.crc32[chunk]:
                    raise ValueError(f"{self.path}: its bytes changed since it was saved (in tensor {name})")
                self._verified.add((name, chunk))


def stored_shape(region: Region) -> tuple[int, ...]:
    """What a part is in its file: a box with its sizes, a run as so many elements."""
    return sizes(region.box) if region.run is None else (region.numel,)


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype_name(dtype)} of shape {shape}"
