"""Checkpoints on disk: safetensors shards, a JSON state, and a manifest that makes any damage visible.

    checkpoints/step-1200/tensors-00001.safetensors ...  state.json  manifest.json

The manifest holds a SHA-256 of every file and of itself, and a CRC-32 of every tensor to name a damaged one.
A folder is filled under a temporary name, made durable, and renamed; a name is never written twice. So a kill
or a full disk at any moment leaves the checkpoints that were there, and the new one whole or not at all.
"""

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.files import atomic_directory, encode_json, read_json, read_sealed, sealed, sha256, write_durably
from groundup.step_folders import free_name, step_folders, step_of, sweep
from groundup.step_folders import prune as prune_folders
from groundup.tensorfile import read_tensors, validate_header, write_tensors

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
SHARD_BYTES = 1 << 30  # of tensors; the library copies a whole shard while it writes it
SHARD_TENSORS = 4096

logger = logging.getLogger("groundup.train")


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    directory: str | Path,
    step: int,
    *,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    keep: int | None = None,
) -> Path:
    """Write checkpoint `step-N` under `directory` and then drop all but the newest `keep`.

    A second save of one step gets the name `step-N.1`: nothing is overwritten. Raises OSError when the disk
    refuses (everything older is intact, nothing partial stays) and ValueError when `state` is not JSON.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    body = encode_json(state)
    final = free_name(directory, step)
    with atomic_directory(final) as folder:
        entries = {}
        for number, shard in enumerate(_shards(tensors), start=1):
            name = f"tensors-{number:05d}.safetensors"
            write_tensors(folder / name, shard)
            entries |= {key: _describe(tensor, name) for key, tensor in shard.items()}
        write_durably(folder / STATE, body)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
        write_durably(folder / MANIFEST, sealed({"format": FORMAT, "step": step, "files": files, "tensors": entries}))
    if keep is not None:
        prune(directory, keep)
    return final


def latest(directory: str | Path) -> Path | None:
    """The newest checkpoint whose manifest verifies. Damaged ones are passed over, and said so."""
    for path in checkpoints(directory):
        try:
            verify(path)
            return path
        except (ValueError, OSError) as error:
            logger.warning("checkpoint %s is damaged and passed over: %s", path, error)
    return None


def load(path: str | Path, *, verified: bool = False) -> Checkpoint:
    """Read a checkpoint (tensors on the CPU). `verified`: `verify` has just passed, as in `latest`.

    Raises ValueError that names the file, and the tensor where there is one.
    """
    path = Path(path)
    manifest = read_manifest(path) if verified else verify(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(manifest["files"]):
        if name.endswith(".safetensors"):
            tensors |= read_tensors(path / name)
    return Checkpoint(path, manifest["step"], tensors, read_json(path / STATE))


def verify(path: str | Path) -> dict[str, Any]:
    """The manifest, after holding every byte of the checkpoint against it. Raises ValueError or OSError."""
    path = Path(path)
    manifest = read_manifest(path)
    found = {p.name for p in path.iterdir() if p.suffix in (".safetensors", ".json")} - {MANIFEST}
    if found != set(manifest["files"]):
        missing, extra = set(manifest["files"]) - found, found - set(manifest["files"])
        raise ValueError(f"{path}: missing files {sorted(missing)}, unexpected files {sorted(extra)}")
    for name, entry in manifest["files"].items():
        _verify_file(path / name, entry, manifest["tensors"])
    return manifest


def checkpoints(directory: str | Path) -> list[Path]:
    """Every folder named like a checkpoint, newest first, whole or not."""
    return step_folders(directory)


def prune(directory: str | Path, keep: int) -> None:
    """Drop all but the newest `keep` checkpoints, unless none of those verifies: the last good one stays."""
    prune_folders(directory, keep, _is_whole)


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except (ValueError, OSError):
        return False
    return True


def _shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        if shards[-1] and (tensor.nbytes > room or len(shards[-1]) >= SHARD_TENSORS):
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor.detach()
        room -= tensor.nbytes
    return shards


def _describe(tensor: Tensor, file: str) -> dict[str, Any]:
    return {
        "file": file,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "crc32": _crc32(tensor),
    }


def _crc32(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, which is whole by its own hash; the files that it lists are not looked at."""
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(f"{path}: no {MANIFEST}: not a checkpoint, or its save did not finish")
    manifest = read_sealed(file)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{file}: format {manifest.get('format')!r}; this version reads {FORMAT}")
    if step_of(path) not in (None, manifest["step"]):
        raise ValueError(f"{path}: its manifest is of step {manifest['step']}: the folder was renamed or mixed up")
    return manifest


def _verify_file(path: Path, entry: dict[str, Any], tensors: dict[str, Any]) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(f"{path}: {size} bytes, the manifest says {entry['bytes']}: truncated or replaced")
    if sha256(path) != entry["sha256"]:
        raise ValueError(f"{path}: its bytes changed since it was saved{_damaged_tensors(path, tensors)}")
    if path.suffix == ".safetensors":
        found = {
            name: (str(e.dtype).removeprefix("torch."), list(e.shape)) for name, e in validate_header(path).items()
        }
        said = {name: (e["dtype"], e["shape"]) for name, e in tensors.items() if e["file"] == path.name}
        if found != said:
            raise ValueError(f"{path}: its tensors are not those that the manifest lists")


def _damaged_tensors(path: Path, tensors: dict[str, Any]) -> str:
    if path.suffix != ".safetensors":
        return ""
    try:
        found = read_tensors(path)
    except (ValueError, OSError):
        return " (in its header)"
    names = [name for name, tensor in found.items() if _crc32(tensor) != tensors.get(name, {}).get("crc32")]
    return f" (in tensor {', '.join(names[:3])})" if names else " (in its header)"
