"""A trie as a safetensors file, and back. What was read is checked whole: the loops that walk it check nothing."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from groundup.model.ngram_trie import Trie
from groundup.tensorfile import read_tensors, write_tensors

Discounts = list[tuple[float, float, float]]

ARRAYS = {
    "levels": np.int64, "first": np.int32, "token": np.int32, "suffix": np.int32,
    "prob": np.float64, "backoff": np.float64, "discounts": np.float64,
}  # fmt: skip


def write_trie(path: str | Path, trie: Trie, discounts: Discounts) -> None:
    """Write the arrays of a trie under their names, and the discounts [order, 3], or [0, 3] where none are known."""
    arrays = {name: getattr(trie, name) for name in ARRAYS if name != "discounts"}
    arrays["discounts"] = np.array(discounts, dtype=np.float64).reshape(-1, 3)
    write_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, {"model": "n-gram trie"})


def read_trie(path: str | Path) -> tuple[Trie, Discounts]:
    """Read what `write_trie` wrote. ValueError, naming the file and the fault, for anything else."""
    tensors = read_tensors(path)
    if tensors.keys() != ARRAYS.keys():
        raise ValueError(f"{path}: tensors {sorted(tensors)}; expected those of an n-gram model: {sorted(ARRAYS)}")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    for name, dtype in ARRAYS.items():
        dimensions = 2 if name == "discounts" else 1
        if arrays[name].dtype != dtype or arrays[name].ndim != dimensions:
            given = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            raise ValueError(
                f"{path}: tensor {name!r} is {given}; expected {np.dtype(dtype)}, {dimensions}-dimensional"
            )
    discounts = arrays.pop("discounts")
    _check_sizes(path, **arrays)
    trie = Trie(**arrays)
    check_trie(path, trie)
    if discounts.shape not in ((0, 3), (trie.order, 3)):
        raise ValueError(f"{path}: discounts of shape {discounts.shape}; expected ({trie.order}, 3)")
    return trie, [(d1, d2, d3) for d1, d2, d3 in discounts.tolist()]


def _check_sizes(
    path: str | Path, levels: np.ndarray, first: np.ndarray, backoff: np.ndarray, **nodes: np.ndarray
) -> None:
    if len(levels) < 3 or levels[0] != 0 or levels[1] != 1 or levels[2] < 3 or (np.diff(levels) < 0).any():
        raise ValueError(
            f"{path}: levels {levels.tolist()[:9]}; expected 0, 1, then where each length of n-grams begins"
        )
    sizes = {"first": len(first) - 1, "backoff": len(backoff)} | {name: len(array) for name, array in nodes.items()}
    for name, size in sizes.items():
        expected = int(levels[-2] if name in ("first", "backoff") else levels[-1])
        if size != expected:
            raise ValueError(f"{path}: {name} is for {size} n-grams, and levels says {expected}")


def check_trie(path: str | Path, trie: Trie) -> None:
    """ValueError where walking a trie would leave its arrays, not end, or come to numbers that are no probability."""
    for fault, found in _faults(trie):
        if found.any():
            raise ValueError(f"{path}: {fault} (first at place {int(np.argmax(found))}); write the file again")


def _faults(trie: Trie) -> list[tuple[str, Bool[np.ndarray, "_"]]]:
    levels, nodes = trie.levels, np.arange(len(trie.token))
    level = np.searchsorted(levels, nodes, side="right") - 1  # the length of each node's n-gram
    below = np.maximum(level - 1, 0)
    unigrams = slice(1, int(levels[2]))
    return [
        ("first does not give each history followers of its own", np.diff(trie.first) < 0),
        ("the followers of a length are not the next length", trie.first[levels[:-1]] != levels[1:]),
        ("a token is not in the vocabulary", (trie.token < 0) | (trie.token >= trie.symbols)),
        ("the unigrams are not all tokens", trie.token[unigrams] != np.arange(trie.symbols)),
        ("a suffix is no shorter n-gram", (trie.suffix < levels[below]) | (trie.suffix >= levels[below + 1])),
        ("a probability is not in (0, 1]", ~((trie.prob > 0) & (trie.prob <= 1 + 1e-6))),
        ("a backoff weight is negative or not finite", ~(np.isfinite(trie.backoff) & (trie.backoff >= 0))),
    ]  # fmt: skip
