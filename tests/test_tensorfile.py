import json
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundup.device import resident_bytes
from groundup.tensorfile import HEADER_LIMIT_BYTES, read_tensors, validate_header, write_tensors


def craft(path: Path, header: str | bytes | dict, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header at all, and any claim about the header's length."""
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).view(2, 3),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
    "half": torch.randn(5).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_round_trip_and_the_library_agrees(tmp_path):
    write_tensors(tmp_path / "ours.safetensors", TENSORS)
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert same(read_tensors(tmp_path / "ours.safetensors"), TENSORS)
    assert same(read_tensors(tmp_path / "theirs.safetensors"), TENSORS)
    assert same(load_file(tmp_path / "ours.safetensors"), TENSORS)
    assert sorted(os.listdir(tmp_path)) == ["ours.safetensors", "theirs.safetensors"]


def test_header_by_hand(tmp_path):
    path = craft(tmp_path / "f", {"b": entry([1], 8, 12), "a": entry([2], 0, 8)}, bytes(12))
    assert validate_header(path) == {"b": (torch.float32, (1,), 8, 12), "a": (torch.float32, (2,), 0, 8)}


def test_no_tensors_at_all(tmp_path):
    write_tensors(tmp_path / "f", {})
    assert read_tensors(tmp_path / "f") == {}


def test_views_and_shared_memory_are_written_whole(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"base": base, "again": base, "row": base[1], "transposed": base.T}
    write_tensors(tmp_path / "f", tensors)
    assert same(read_tensors(tmp_path / "f"), tensors)


def test_names_of_any_kind(tmp_path):
    tensors = {'quote"': torch.ones(1), "новый": torch.zeros(1), "a.b/c": torch.ones(2)}
    write_tensors(tmp_path / "f", tensors)
    assert same(read_tensors(tmp_path / "f"), tensors)


HOSTILE = {
    "empty file": (b"", None, "too short"),
    "huge length": (b"{}", 2**63, "at most"),
    "length beyond the file": (b"{}", 100, "cut short"),
    "not json": (b"nonsense", None, "not valid JSON"),
    "leading space": (b' {"a": 1}', None, "does not start"),
    "not utf-8": (b'{"\xff\xfe": {}}', None, "not valid JSON"),
    "a list": (b"[1]", None, "does not start"),
    "deep": (b'{"a":' * 100_000, None, "not valid JSON"),
    "deep list": (b"[" * 1_000_000, None, "not valid JSON"),
    "duplicate": (b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}', None, "occurs twice"),
    "duplicate inside": (
        b'{"a": {"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        None,
        "occurs twice",
    ),
    "nan": (b'{"a": NaN}', None, "not JSON"),
    "million digits": (b'{"a": ' + b"9" * 1_000_000 + b"}", None, "not valid JSON"),
    "metadata not strings": (b'{"__metadata__": {"a": 1}}', None, "strings"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_headers(tmp_path, name):
    raw, length, message = HOSTILE[name]
    path = tmp_path / "f"
    if name == "empty file":
        path.write_bytes(b"")
    else:
        craft(path, raw, length=length)
    with pytest.raises(ValueError, match=message):
        validate_header(path)


CLAIMS = {
    "entry is a number": ({"a": 3}, "exactly dtype"),
    "extra key": ({"a": entry([1], 0, 4) | {"more": 1}}, "exactly dtype"),
    "unknown dtype": ({"a": entry([1], 0, 4, "F128")}, "expected one of"),
    "dtype is a list": ({"a": entry([1], 0, 4) | {"dtype": []}}, "expected one of"),
    "negative size": ({"a": entry([-1], 0, 4)}, "shape must be"),
    "float size": ({"a": entry([1.0], 0, 4)}, "shape must be"),
    "boolean size": ({"a": entry([True], 0, 4)}, "shape must be"),
    "2^63 size": ({"a": entry([2**63], 0, 4)}, "shape must be"),
    "product overflows": ({"a": entry([2**32, 2**32], 0, 4)}, "addressed"),
    "overflow hidden by a zero": ({"a": entry([2**62, 0, 2**62], 0, 0)}, "addressed"),
    "a thousand dimensions": ({"a": entry([1] * 1000, 0, 4)}, "shape must be"),
    "three offsets": ({"a": entry([1], 0, 4) | {"data_offsets": [0, 4, 8]}}, "begin, end"),
    "offsets reversed": ({"a": entry([1], 4, 0)}, "begin, end"),
    "wrong extent": ({"a": entry([2], 0, 4)}, "needs 8 bytes"),
    "beyond the file": ({"a": entry([2**40], 0, 2**42)}, "describes"),
    "bytes left over": ({"a": entry([0], 0, 0)}, "describes"),
    "overlap": ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, "overlaps"),
    "gap": ({"a": entry([1], 4, 8)}, "gap"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_that_the_file_does_not_back(tmp_path, name):
    header, message = CLAIMS[name]
    with pytest.raises(ValueError, match=message):
        read_tensors(craft(tmp_path / "f", header, bytes(4)))


def test_hostile_header_at_the_limit_costs_little_memory(tmp_path):
    body = b"[],"
    raw = b'{"a":[' + body * ((HEADER_LIMIT_BYTES - 20) // len(body)) + b"[]]}"
    path = craft(tmp_path / "f", raw)
    before = resident_bytes()
    with pytest.raises(ValueError, match="exactly dtype"):
        validate_header(path)
    assert resident_bytes() - before < 64 * 2**20


def test_mutated_files_never_crash_nor_pass_as_something_else(tmp_path):
    """Whatever bytes of the header change: a ValueError, or tensors whose sizes the file really holds."""
    write_tensors(tmp_path / "good", TENSORS)
    good = (tmp_path / "good").read_bytes()
    header_end = 8 + struct.unpack("<Q", good[:8])[0]
    rng = random.Random(0)
    refused = 0
    for _ in range(1000):
        mutant = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            mutant[rng.randrange(header_end)] = rng.randrange(256)
        (tmp_path / "mutant").write_bytes(mutant)
        try:
            found = read_tensors(tmp_path / "mutant")
            assert sum(t.nbytes for t in found.values()) == len(good) - header_end
        except ValueError:
            refused += 1
    assert refused > 700


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_truncated_files(tmp_path, keep):
    write_tensors(tmp_path / "f", TENSORS)
    data = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(data[:keep])
    with pytest.raises(ValueError):
        read_tensors(tmp_path / "f")


def test_too_many_names_for_one_file(tmp_path):
    with pytest.raises(ValueError, match="several files"):
        write_tensors(tmp_path / "f", {f"tensor{i}": torch.ones(1) for i in range(20_000)})
    assert os.listdir(tmp_path) == []


def test_failure_leaves_the_old_file(tmp_path, monkeypatch):
    write_tensors(tmp_path / "f", {"a": torch.ones(2)})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_tensors(tmp_path / "f", {"a": torch.zeros(2)})
    assert torch.equal(read_tensors(tmp_path / "f")["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["f"]
