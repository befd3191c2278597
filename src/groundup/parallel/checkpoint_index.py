"""What a checkpoint of many ranks holds: each tensor's parts, in which file each lies, and what its bytes have to be.

    step-1200/index.json                   {"blocks.0.ffn.up.weight": shape (256, 64), float32,
    step-1200/rank-00000-00001.safetensors     rows 0 to 128 are in rank-00000's, rows 128 to 256 in rank-00001's}
    step-1200/rank-00001-00001.safetensors

The index speaks of whole tensors under the model's names, so it does not matter which plan they were saved under. It
is a JSON object with a hash of itself, and has a hash of each file's header and a CRC-32 of every megabyte of each
part: so any changed bit shows, also to one who reads only the part that he needs.

Nothing in a folder is believed before it is checked: parts have to make up whole tensors, files have to be as long as
said, and names lead to nowhere else. So an index cannot make its reader ask for more memory than the files take.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.files import read_sealed, sealed
from groundup.parallel.regions import Region, check_cover
from groundup.step_folders import step_of
from groundup.tensorfile import DTYPES, HEADER_LIMIT_BYTES, MAX_DIMENSIONS

FORMAT = 1
INDEX = "index.json"
CHUNK_BYTES = 1 << 20
"""Bytes of a part under one CRC-32: what is read at least to check what is used."""

_FILE = re.compile(r"rank-\d{5}-\d{5}\.safetensors")
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}  # float32, ...


@dataclass(frozen=True)
class Stored:
    """A part of a tensor, under the tensor's name in a file."""

    file: str
    region: Region
    crc32: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A whole tensor and its parts, which have each element once."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Stored, ...]


@dataclass(frozen=True)
class File:
    bytes: int
    header_sha256: str


@dataclass(frozen=True)
class Index:
    """`state` is whatever else the run keeps, the same for all ranks: step counts, the data's cursor, generators."""

    step: int
    tensors: dict[str, Entry]
    files: dict[str, File]
    state: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        tensors = {name: _entry_to_json(entry) for name, entry in self.tensors.items()}
        files = {name: {"bytes": f.bytes, "header_sha256": f.header_sha256} for name, f in self.files.items()}
        body = {"format": FORMAT, "step": self.step, "tensors": tensors, "files": files, "state": self.state}
        return sealed(body, compact=True)


def read_index(path: str | Path) -> Index:
    """The index of a checkpoint's folder, held against itself and the sizes of the files.

    Raises ValueError that says what is wrong: a changed byte, another format, a part outside of its tensor, parts that
    overlap or lack something, a file that is missing, too short, too long or not listed, or another folder's index.
    """
    path = Path(path)
    if not (path / INDEX).is_file():
        raise ValueError(f"{path}: no {INDEX}: not a checkpoint, or its save did not finish")
    body = read_sealed(path / INDEX, compact=True)
    if body.get("format") != FORMAT:
        raise ValueError(f"{path / INDEX}: format {body.get('format')!r}; this version reads {FORMAT}")
    try:
        index = _index(body)
    except ValueError as error:
        raise ValueError(f"{path / INDEX}: {error}") from error
    if step_of(path) not in (None, index.step):
        raise ValueError(f"{path}: its index is of step {index.step}: the folder was renamed or mixed up")
    _check_files(path, index)
    return index


def dtype_name(dtype: torch.dtype) -> str:
    """As the index says it: float32."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """ValueError for a type that safetensors files do not have."""
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r:.40} cannot be saved; expected one of: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def header_sha256(path: Path) -> str:
    """The hash of a safetensors file's length and header: all that is in it but the tensors' bytes."""
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = min(int.from_bytes(prefix, "little"), HEADER_LIMIT_BYTES)
        return hashlib.sha256(prefix + file.read(length)).hexdigest()


def checksums(tensor: Tensor) -> tuple[int, ...]:
    """A CRC-32 of every `CHUNK_BYTES` of a contiguous tensor on the CPU."""
    data = tensor.detach().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
    return tuple(zlib.crc32(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    parts = [
        {
            "file": part.file,
            "box": [list(pair) for pair in part.region.box],
            "run": None if part.region.run is None else list(part.region.run),
            "crc32": list(part.crc32),
        }
        for part in entry.parts
    ]
    return {"shape": list(entry.shape), "dtype": dtype_name(entry.dtype), "parts": parts}


def _index(body: dict[str, Any]) -> Index:
    _keys(body, "format", "step", "tensors", "files", "state", "sha256")
    _require(_is_size(body["step"]), "step", body["step"])
    for name in ("tensors", "files", "state"):
        _require(isinstance(body[name], dict), name, body[name])
    files = {name: _file(name, value) for name, value in body["files"].items()}
    tensors = {name: _entry(name, value, files) for name, value in body["tensors"].items()}
    _check_room(tensors, files)
    return Index(body["step"], tensors, files, body["state"])


def _file(name: str, value: Any) -> File:
    if not _FILE.fullmatch(name):
        raise ValueError(f"file name {name!r:.100}; expected one like rank-00000-00001.safetensors")
    _keys(value, "bytes", "header_sha256")
    _require(_is_size(value["bytes"]), f"bytes of {name}", value["bytes"])
    _require(isinstance(value["header_sha256"], str), f"header_sha256 of {name}", value["header_sha256"])
    return File(value["bytes"], value["header_sha256"])


def _entry(name: str, value: Any, files: dict[str, File]) -> Entry:
    try:
        _keys(value, "shape", "dtype", "parts")
        shape, dtype, parts = value["shape"], value["dtype"], value["parts"]
        _require(_are_sizes(shape) and len(shape) <= MAX_DIMENSIONS and prod(shape) < 2**60, "shape", shape)
        _require(isinstance(dtype, str) and dtype in _DTYPES, "dtype", dtype)
        _require(isinstance(parts, list), "parts", parts)
        stored = tuple(_part(part) for part in parts)
        _check_parts(shape, _DTYPES[dtype], stored, files)
    except ValueError as error:
        raise ValueError(f"tensor {name!r:.100}: {error}") from error
    return Entry(tuple(shape), _DTYPES[dtype], stored)


def _part(value: Any) -> Stored:
    _keys(value, "file", "box", "run", "crc32")
    file, box, run = value["file"], value["box"], value["run"]
    _require(isinstance(file, str), "file", file)
    _require(isinstance(box, list) and all(_is_range(pair) for pair in box), "box", box)
    _require(run is None or _is_range(run), "run", run)
    _require(_are_sizes(value["crc32"]), "crc32", value["crc32"])
    return Stored(file, Region(tuple((a, b) for a, b in box), run and (run[0], run[1])), tuple(value["crc32"]))


def _check_parts(shape: list[int], dtype: torch.dtype, parts: tuple[Stored, ...], files: dict[str, File]) -> None:
    for part in parts:
        if part.file not in files:
            raise ValueError(f"a part is in {part.file!r:.100}, which is not among the index's files")
    if len({part.file for part in parts}) < len(parts):
        raise ValueError("two of its parts are in one file, where a name can stand once")
    check_cover(shape, [part.region for part in parts])
    for part in parts:
        chunks = -(-part.region.numel * dtype.itemsize // CHUNK_BYTES)
        if len(part.crc32) != chunks:
            raise ValueError(f"its part in {part.file} has {len(part.crc32)} checksums; expected {chunks}")


def _check_room(tensors: dict[str, Entry], files: dict[str, File]) -> None:
    """No file is said to hold more than it has bytes."""
    held = dict.fromkeys(files, 0)
    for entry in tensors.values():
        for part in entry.parts:
            held[part.file] += part.region.numel * entry.dtype.itemsize
    for name, size in held.items():
        if size > files[name].bytes:
            raise ValueError(f"{name} of {files[name].bytes} bytes is said to hold {size} bytes of tensors")


def _check_files(path: Path, index: Index) -> None:
    found = {p.name for p in path.iterdir()} - {INDEX}
    if found != set(index.files):
        missing, extra = sorted(set(index.files) - found), sorted(found - set(index.files))
        raise ValueError(f"{path}: missing files {missing[:5]}, unexpected files {extra[:5]}")
    for name, file in index.files.items():
        if (path / name).is_symlink() or not (path / name).is_file():
            raise ValueError(f"{path / name}: not a regular file")
        if (size := (path / name).stat().st_size) != file.bytes:
            raise ValueError(f"{path / name}: {size} bytes, the index says {file.bytes}: truncated or replaced")


def _keys(value: Any, *names: str) -> None:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected an object of {', '.join(names)}; found {_short(value)}")


def _require(holds: bool, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{what} cannot be {_short(value)}")


def _short(value: Any) -> str:
    return repr(sorted(value) if isinstance(value, dict) else value)[:100]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_range(value: Any) -> bool:
    return _are_sizes(value) and len(value) == 2 and value[0] <= value[1]


def every_part(index: Index) -> Iterator[tuple[str, Entry, Stored]]:
    """(name, entry, part) of all that the checkpoint holds."""
    return ((name, entry, part) for name, entry in index.tensors.items() for part in entry.parts)
