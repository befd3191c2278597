"""What a tokenizer's output is compared by: a hash of ids or bytes, or the tokens of a vocabulary.

Loaded by path from `tokenizer_turns.py`, in the peers' environment too: it needs numpy only.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SLICE = 1 << 20


def write(options: dict[str, Any], results: Iterable[Any]) -> None:
    """Write the check of `options["check_kind"]` to the file `options["check"]`."""
    found = CHECKS[options["check_kind"]](options, results)
    Path(options["check"]).write_text(json.dumps(found), "utf-8")


def of_ids(options: dict[str, Any], results: Iterable[Any]) -> dict[str, Any]:
    """Of the ids of all documents in order, without the end-of-text token, which not every program puts there."""
    digest, count = hashlib.sha256(), 0
    for ids in _slices(results):
        array = np.asarray(ids).astype("<u4")
        array = array[array != options["end_of_text"]]
        digest.update(array.tobytes())
        count += len(array)
    return {"sha256": digest.hexdigest(), "count": count}


def of_bytes(options: dict[str, Any], results: Iterable[bytes]) -> dict[str, Any]:
    joined = b"".join(results)
    return {"sha256": hashlib.sha256(joined).hexdigest(), "count": len(joined)}


def of_tokens(options: dict[str, Any], results: Iterable[bytes]) -> dict[str, Any]:
    """Without the separator: some trainers know no special tokens."""
    tokens = sorted({bytes(token) for token in results} - {options["separator"].encode()})
    return {"tokens": [token.hex() for token in tokens], "count": len(tokens)}


CHECKS = {"ids": of_ids, "bytes": of_bytes, "tokens": of_tokens}


def _slices(sequences: Iterable[Any]) -> Iterator[Any]:
    """At most a million ids at a time: a copy of all would be more memory than the work takes."""
    for sequence in sequences:
        yield from (sequence[at : at + _SLICE] for at in range(0, len(sequence), _SLICE))


def verdict(expected: dict[str, Any] | None, found: dict[str, Any] | None) -> str:
    """How `found` compares with `expected`, in words; empty where either is missing."""
    if expected is None or found is None:
        return ""
    if found is expected:
        return "the reference"
    if "tokens" in expected:
        return _overlap(set(expected["tokens"]), set(found["tokens"]))
    if expected["sha256"] == found["sha256"]:
        return "identical"
    return f"DIFFERS: {found['count']:,} against {expected['count']:,}"


def _overlap(expected: set[str], found: set[str]) -> str:
    """Trainers break ties in ways of their own, so no vocabulary is the right one: this is not a fault."""
    if expected == found:
        return "identical"
    return f"{100 * len(expected & found) / max(1, len(expected)):.2f} % of ours"
