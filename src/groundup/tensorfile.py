"""Reading and writing safetensors files, with a header check of our own in front of the library.

The format: 8 bytes N (little-endian), N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}},
then the tensors' bytes. The library accepts duplicate names, and a reader that trusts the header allocates
what it claims; so nothing is allocated here before every claim was held against the file's real size.
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup.files import replacing, write_json

# A parsed header takes up to 30 times its bytes in memory, so this bounds what a hostile one costs to some
# 60 MB. It is room for about 20,000 tensors in one file; larger models are split over several files.
HEADER_LIMIT_BYTES = 2 * 1024 * 1024
MAX_DIMENSIONS = 64  # torch's own limit

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class TensorEntry(NamedTuple):
    """What a header says of one tensor; begin and end count bytes from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def validate_header(path: str | Path) -> dict[str, TensorEntry]:
    """Every tensor that the file holds, after checking the header against the format and the file's size.

    Raises ValueError (naming file and tensor) for a header that is too long, not JSON, or has a name twice,
    an unknown dtype, a shape that does not fill its bytes, or bytes that overlap, leave a gap or run over.
    """
    path = Path(path)
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        length = _header_length(f.read(8), size, path)
        raw = f.read(length)
    header = _parse(raw, path)
    _check_metadata(header.pop("__metadata__", {}), path)
    entries = {name: _entry(name, value, path) for name, value in header.items()}
    _check_layout(entries, size - 8 - length, path)
    return entries


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of the file, on the CPU. Raises ValueError where `validate_header` does."""
    validate_header(path)
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write the tensors under `path`, atomically. Views and tensors that share memory are written whole.

    Raises ValueError when the names and shapes would not fit one file's header, OSError as the disk does.
    """
    path = Path(path)
    _check_header_room(tensors, metadata or {}, path)
    try:
        with replacing(path) as temporary:
            save_file(_own_memory(tensors), str(temporary), {"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def write_sharded(folder: str | Path, tensors: dict[str, Tensor], max_bytes: int | None) -> None:
    """Write model.safetensors, or several files of at most `max_bytes` of tensors each and the index of them.

    The names are Hugging Face's: model-00001-of-00003.safetensors and model.safetensors.index.json, which comes last
    and without which the files are not read. A tensor that is larger than a file gets one of its own. What an earlier
    save left under other names is removed, after the new weights are whole.
    """
    folder = Path(folder)
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    shards = split_by_bytes(tensors, max_bytes)
    if len(shards) == 1:
        write_tensors(single, tensors)
        index.unlink(missing_ok=True)
        _remove_other_shards(folder, [])
        return
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if any((folder / name).exists() for name in names):
        index.unlink(missing_ok=True)  # new files beside old ones of the same names are not a model
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard)
    place = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(index, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": place})
    single.unlink(missing_ok=True)
    _remove_other_shards(folder, names)


def split_by_bytes(tensors: dict[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    """The tensors in order, cut where the next would pass `max_bytes`. ValueError for a limit below one byte."""
    if max_bytes is None:
        return [tensors]
    if max_bytes < 1:
        raise ValueError(f"max_bytes={max_bytes}; expected at least 1, or None for one file")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _remove_other_shards(folder: Path, names: list[str]) -> None:
    for path in folder.glob("model-?????-of-?????.safetensors"):
        if path.name not in names:
            path.unlink()


def _header_length(prefix: bytes, size: int, path: Path) -> int:
    if len(prefix) < 8:
        raise ValueError(f"{path}: {size} bytes is too short for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if length > HEADER_LIMIT_BYTES:
        raise ValueError(f"{path}: header of {length} bytes; at most {HEADER_LIMIT_BYTES} are read")
    if length > size - 8:
        raise ValueError(f"{path}: header of {length} bytes in a file of {size}: the file is cut short")
    return length


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSON, UTF-8 and too-long integers are all ValueErrors
        raise ValueError(f"{path}: header is not valid JSON ({str(error)[:200]})") from error
    if not raw.startswith(b"{") or not isinstance(header, dict):
        raise ValueError(f"{path}: header does not start with a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r:.100} occurs twice")
        result[key] = value
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_metadata(metadata: Any, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: __metadata__ must map names to strings")


def _entry(name: str, value: Any, path: Path) -> TensorEntry:
    where = f"{path}: tensor {name!r:.100}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where}: dtype {dtype!r:.40}; expected one of: {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{where}: shape must be at most {MAX_DIMENSIONS} integers from 0 to 2^63 - 1")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where}: data_offsets must be [begin, end] with 0 <= begin <= end")
    entry = TensorEntry(DTYPES[dtype], tuple(shape), *offsets)
    _check_extent(entry, where)
    return entry


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_extent(entry: TensorEntry, where: str) -> None:
    # strides are products of sizes too, and torch keeps them in 64 bits even when one size is zero
    if math.prod(max(size, 1) for size in entry.shape) * entry.dtype.itemsize >= 2**63:
        raise ValueError(f"{where}: shape {entry.shape} has more elements than can be addressed")
    needed = math.prod(entry.shape) * entry.dtype.itemsize
    if needed != entry.end - entry.begin:
        given = entry.end - entry.begin
        raise ValueError(f"{where}: shape {entry.shape} needs {needed} bytes, data_offsets give {given}")


def _check_layout(entries: dict[str, TensorEntry], data_bytes: int, path: Path) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            fault = "overlaps the tensor before it" if entry.begin < at else "leaves a gap before it"
            raise ValueError(f"{path}: tensor {name!r:.100} begins at byte {entry.begin} and {fault} ({at})")
        at = entry.end
    if at != data_bytes:
        raise ValueError(f"{path}: the header describes {at} bytes of tensors, the file holds {data_bytes}")


def _check_header_room(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    fixed = 100  # dtype, two offsets of up to 20 digits, punctuation
    names = sum(len(json.dumps(name)) + fixed + 20 * tensor.ndim for name, tensor in tensors.items())
    if names + len(json.dumps(metadata)) > HEADER_LIMIT_BYTES:
        raise ValueError(f"{path}: {len(tensors)} tensors do not fit one file's header; use several files")


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result
