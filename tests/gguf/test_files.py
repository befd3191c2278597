"""GGUF files as a whole: written and read, damaged, and made to do damage."""

import random
import struct
import tracemalloc

import numpy as np
import pytest

from groundup.gguf import KINDS, GGUFFile, read_header, write_gguf
from groundup.gguf.metadata import MAX_ITEMS, header_bytes
from tests.thorough import times

METADATA = {
    "general.architecture": "llama",
    "count": 7,
    "theta": 0.5,
    "flag": True,
    "wide": np.int64(-3),
    "words": ["a", "né", ""],
    "numbers": np.array([1, -2], np.int32),
    "tokenizer.ggml.tokens": ["x"] * 3,
}


def tensors():
    rows = np.arange(128, dtype=np.float32).reshape(2, 64) / 8
    return {
        "a.weight": (KINDS["F32"], rows[0, :5]),
        "b.weight": (KINDS["F16"], rows),
        "c.weight": (KINDS["Q8_0"], rows),
        "d.weight": (KINDS["BF16"], rows[:, :3]),
    }


@pytest.fixture
def path(tmp_path):
    write_gguf(tmp_path / "x.gguf", METADATA, tensors())
    return tmp_path / "x.gguf"


def test_what_is_written_is_read(path):
    with GGUFFile(path) as file:
        assert file.metadata.pop("numbers").tolist() == [1, -2]
        assert file.metadata == {k: v for k, v in METADATA.items() if k not in ("numbers", "tokenizer.ggml.tokens")}
        for name, (kind, values) in tensors().items():
            assert file.tensors[name].kind is kind and file.tensors[name].shape == values.shape
            assert file.tensors[name].begin % 32 == 0
            np.testing.assert_allclose(file.read(name), values, atol=values.max() / 254, rtol=2**-8)
        assert file.read("a.weight").flags.writeable


def test_the_lists_that_are_wanted(path):
    assert read_header(path.read_bytes()).values["tokenizer.ggml.tokens"] == ["x"] * 3
    assert "words" not in read_header(path.read_bytes(), lambda key: False).values


def test_the_gguf_package_reads_what_is_written(path):
    peer = pytest.importorskip("gguf", reason="the gguf package of llama.cpp is not installed")
    theirs = peer.GGUFReader(path)
    for key, value in METADATA.items():
        found = theirs.fields[key].contents()
        assert found == (value.tolist() if isinstance(value, np.ndarray) else value)
    for tensor in theirs.tensors:
        kind, values = tensors()[tensor.name]
        assert tensor.tensor_type.name == kind.name
        assert tensor.shape.tolist() == list(values.shape[::-1])
        with GGUFFile(path) as file:
            expected = peer.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(file.read(tensor.name), expected)


@pytest.mark.parametrize("value", [-1, 1 << 32, None, {"a": 1}, [1, "a"], np.array(["a"]), 1j])
def test_values_without_a_type_are_refused(value):
    with pytest.raises(ValueError, match="key: .*has no type that GGUF knows"):
        header_bytes({"key": value}, 0)


def test_a_failed_write_leaves_what_was_there(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="tensor 'b': 100000 is larger"):
        write_gguf(path, {}, {"a": tensors()["a.weight"], "b": (KINDS["F16"], np.full((1, 2), 1e5, np.float32))})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["x.gguf"]


# A header by hand, so that every field can lie.


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def info(name="t", sizes=(32,), kind=0, offset=0, dimensions=None):
    dimensions = len(sizes) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", dimensions, *sizes, kind, offset)


def file_of(*infos, count=None, entries=(), entry_count=None, data=bytes(256)):
    counts = struct.pack("<IQQ", 3, len(infos) if count is None else count, entry_count or len(entries))
    head = b"GGUF" + counts + b"".join(entries) + b"".join(infos)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def alignment(value, kind="I", number=4):
    return text("general.alignment") + struct.pack("<I" + kind, number, value)


HOSTILE = {
    "tensors 2^62": (file_of(info(), count=2**62), "4611686018427387904 tensors are announced"),
    "a few more tensors": (file_of(info(), count=20), "20 tensors are announced"),
    "entries 2^62": (file_of(info(), entry_count=2**62), "4611686018427387904 entries"),
    "9 dimensions": (file_of(info(sizes=(1,) * 9)), "tensor 't': 9 dimensions; expected 1 to 4"),
    "2^32 - 1 dimensions": (file_of(info(dimensions=2**32 - 1)), "4294967295 dimensions"),
    "0 dimensions": (file_of(info(sizes=())), "0 dimensions"),
    "name 2^63": (file_of(struct.pack("<Q", 2**63) + bytes(99)), "9223372036854775808 bytes are announced"),
    "long name": (file_of(info(name="n" * 300)), "a name of 300 characters"),
    "name not UTF-8": (file_of(info(name=b"\xff\xfe")), "the name of a tensor.*not UTF-8"),
    "key 2^63": (file_of(info(), entries=[struct.pack("<Q", 2**63)]), "9223372036854775808 bytes are announced"),
    "text 2^63": (file_of(entries=[text("k") + struct.pack("<IQ", 8, 2**63)]), "9223372036854775808 bytes are ann"),
    "list 2^63": (file_of(entries=[text("k") + struct.pack("<IIQ", 9, 0, 2**63)]), "'k': 9223372036854775808 items"),
    "list of lists": (file_of(entries=[text("k") + struct.pack("<IIQ", 9, 9, 1)]), "'k': a list of kind 9"),
    "alignment 0": (file_of(info(), entries=[alignment(0)]), "general.alignment: 0; expected a power of two"),
    "alignment 3": (file_of(info(), entries=[alignment(3)]), "general.alignment: 3"),
    "alignment 2^30": (file_of(info(), entries=[alignment(2**30)]), "general.alignment: 1073741824"),
    "alignment -8": (file_of(info(), entries=[alignment(-8, "i", 5)]), "general.alignment: -8"),
    "alignment 32.0": (file_of(info(), entries=[alignment(32.0, "f", 6)]), "general.alignment: 32.0"),
    "product 2^66": (file_of(info(sizes=(2**33, 2**33))), "shape .8589934592, 8589934592. ends at byte"),
    "product 0 in 64 bits": (file_of(info(sizes=(2**32, 2**32))), "ends at byte"),
    "size 0": (file_of(info(sizes=(32, 0))), "shape .0, 32.; expected sizes of at least 1"),
    "offset behind the end": (file_of(info(offset=256)), "ends at byte 448, the file at 320"),
    "offset 2^64 - 32": (file_of(info(offset=2**64 - 32)), "ends at byte"),
    "offset 8": (file_of(info(offset=8)), "its offset 8 is no multiple of the alignment, 32"),
    "overlap": (file_of(info("a"), info("b", offset=96)), "tensor 'b': begins at byte 192, inside 'a'"),
    "same place": (file_of(info("a"), info("b")), "tensor 'b': begins at byte 96, inside 'a'"),
    "twice": (file_of(info("a"), info("a", offset=128)), "tensor 'a' occurs twice"),
    "half a block": (file_of(info(sizes=(48,), kind=8)), "rows of 48 values are not whole blocks of 32, as Q8_0"),
    "unknown type": (file_of(info(kind=99)), "tensor 't': a type with the number 99 is not supported"),
    "type not read": (file_of(info(kind=16, sizes=(256,))), "tensor 't': type IQ2_XXS is not supported"),
    "empty": (b"", "the file is empty"),
    "cut short": (file_of(info(), data=bytes(64)), "ends at byte 192, the file at 128"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "not GGUF": (b"GGML" + bytes(60), "not a GGUF file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_before_anything_is_allocated(tmp_path, name):
    data, message = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_the_sound_header_by_hand(tmp_path):
    (tmp_path / "x.gguf").write_bytes(file_of(info("a"), info("b", (8, 4), offset=128), entries=[alignment(32)]))
    with GGUFFile(tmp_path / "x.gguf") as file:
        assert file.tensors["b"].shape == (4, 8)
        assert not file.read("b").any()


@pytest.mark.slow
def test_the_most_texts_that_a_header_may_have():
    """Two-character texts are the dearest: ten bytes of file, some sixty of memory."""
    texts = (struct.pack("<Q", 2) + b"xy") * MAX_ITEMS
    entry = struct.pack("<IIQ", 9, 8, MAX_ITEMS) + texts
    data = file_of(entries=[text("a") + entry])
    tracemalloc.start()
    assert len(read_header(data).values["a"]) == MAX_ITEMS
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    empty = struct.pack("<IIQ", 9, 8, MAX_ITEMS // 2 + 1) + bytes(8 * (MAX_ITEMS // 2 + 1))
    with pytest.raises(ValueError, match=f"'b': {MAX_ITEMS + 2} texts with the lists before"):
        read_header(file_of(entries=[text("a") + empty, text("b") + empty]))


def mutants(data, count, seed):
    """Copies of a file with some bytes changed, inserted, deleted or cut off, most of them in the header."""
    chooser = random.Random(seed)
    extremes = [0, 1, 3, 9, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(chooser.choice((1, 1, 2, 4))):
            at = chooser.randrange(chooser.choice((24, 400, len(mutant))) + 1)
            match chooser.randrange(5):
                case 0:
                    mutant[at : at + 1] = bytes([chooser.randrange(256)])
                case 1:
                    mutant[at : at + 8] = struct.pack("<Q", chooser.choice(extremes))
                case 2:
                    del mutant[at : at + chooser.choice((1, 4, 8))]
                case 3:
                    mutant[at:at] = mutant[max(0, at - 8) : at]
                case 4:
                    del mutant[max(at, 8) :]
        yield bytes(mutant)


@pytest.mark.parametrize("count", [600, pytest.param(times(7_000), marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused(path, count, unchecked):
    accepted = 0
    for mutant in mutants(path.read_bytes(), count, seed=count):
        path.write_bytes(mutant)
        try:
            with GGUFFile(path) as file:
                for name, info in file.tensors.items():
                    assert file.read(name).shape == info.shape
        except ValueError:
            continue
        accepted += 1
    assert count * 0.02 < accepted < count * 0.9


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    for length in range(0, len(data) - 32, 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="x.gguf"):
            GGUFFile(path)
