"""Block formats: examples by hand, the `gguf` package as an oracle, and what quantising loses."""

import numpy as np
import pytest

from groundup.gguf.blocks import ENCODERS, KINDS, dequantise, kind_named, kind_of, quantise, unpack_scales


def half(value):
    return np.array(value, "<f2").tobytes()


def decoded(name, data):
    kind = KINDS[name]
    assert len(data) % kind.block.itemsize == 0
    return dequantise(kind, data, (len(data) // kind.block.itemsize * kind.size,)).tolist()


COUNTING = bytes(range(16))  # lower halves 0..15, upper halves 0
LEVELS = bytes(q | (15 - q) << 4 for q in range(16))  # lower halves 0..15, upper halves 15..0


def test_plain_numbers():
    assert decoded("F32", np.array([1.5, -2.0], "<f4").tobytes()) == [1.5, -2.0]
    assert decoded("F16", half(1.5) + half(-65504)) == [1.5, -65504.0]
    assert decoded("BF16", b"\xc0\x3f" + b"\x00\xc0") == [1.5, -2.0]


def test_q8_0_is_a_scale_and_signed_bytes():
    q = [127, -127, 1, 0] + [-5] * 28
    assert decoded("Q8_0", half(0.5) + np.array(q, "i1").tobytes()) == [0.5 * n for n in q]


def test_q4_0_counts_from_minus_eight():
    expected = [2.0 * (q - 8) for q in [*range(16), *range(15, -1, -1)]]
    assert decoded("Q4_0", half(2.0) + LEVELS) == expected


def test_q4_1_counts_from_the_minimum():
    expected = [0.5 * q - 3 for q in [*range(16), *range(15, -1, -1)]]
    assert decoded("Q4_1", half(0.5) + half(-3.0) + LEVELS) == expected


def test_the_fifth_bit_of_q5():
    """Bit j of the four bytes belongs to value j: here to value 0 and, in the last byte, to value 31."""
    high = b"\x01\x00\x00\x80"
    q = [16, *range(1, 16), *[0] * 15, 16]
    assert decoded("Q5_0", half(1.0) + high + COUNTING) == [n - 16.0 for n in q]
    assert decoded("Q5_1", half(2.0) + half(1.0) + high + COUNTING) == [2.0 * n + 1 for n in q]


PACKED = bytes([0b01_000001, 2, 3, 4, 0b10_000101, 6, 7, 8, 0x21, 0x43, 0x65, 0x87])


def test_eight_scales_and_minimums_in_twelve_bytes():
    """Scale 4 is 0001 with 01 in front, minimum 4 is 0010 with 10 in front."""
    scales, minimums = unpack_scales(np.frombuffer(PACKED, np.uint8)[None])
    assert scales[0].tolist() == [1, 2, 3, 4, 0b01_0001, 3, 5, 7]
    assert minimums[0].tolist() == [5, 6, 7, 8, 0b10_0010, 4, 6, 8]


def test_q4_k_has_a_scale_and_a_minimum_for_each_32():
    q = [3] * 32 + [0] * 96  # sub-block 0: 3 in the lower half of a byte, sub-block 1: 0 in the upper
    values = decoded("Q4_K", half(0.5) + half(0.25) + PACKED + bytes(q))
    scales, minimums = [1, 2, 3, 4, 17, 3, 5, 7], [5, 6, 7, 8, 34, 4, 6, 8]
    levels = [3, 0, 0, 0, 0, 0, 0, 0]
    assert values[::32] == [0.5 * s * n - 0.25 * m for s, m, n in zip(scales, minimums, levels, strict=True)]
    assert values[:32] == [values[0]] * 32
    assert decoded("Q4_K", half(1) + half(0) + PACKED + bytes([0x20] * 128))[32:64] == [2.0 * 2] * 32


def test_q5_k_adds_a_bit_for_each_sub_block():
    high = bytes([0b10]) + bytes(31)  # value 0 of sub-block 1
    values = decoded("Q5_K", half(1.0) + half(0.0) + PACKED + high + bytes(128))
    assert [i for i, value in enumerate(values) if value] == [32]
    assert values[32] == 2 * 16


def test_q6_k_counts_from_minus_32_with_a_scale_for_each_16():
    low, high = bytearray(128), bytearray(64)
    low[0], high[0] = 0x21, 0b11_10_01_00  # value 0: 1, value 32: bits 01, value 64: 2 and bits 10, value 96: bits 11
    scales = np.arange(1, 17, dtype="i1").tobytes()
    values = decoded("Q6_K", bytes(low) + bytes(high) + scales + half(0.5))
    expected = {0: 1, 32: 16, 64: 2 + 32, 96: 48}
    q = [expected.get(i, 0) - 32 for i in range(256)]
    assert values == [0.5 * (i // 16 + 1) * q[i] for i in range(256)]


@pytest.mark.parametrize("name", KINDS)
def test_random_blocks_as_the_gguf_package_reads_them(name):
    peer = pytest.importorskip("gguf", reason="the gguf package of llama.cpp is not installed")
    kind = KINDS[name]
    raw = np.random.default_rng(0).integers(0, 256, (40, 3 * kind.block.itemsize), np.uint8)
    theirs = raw.view(kind.block) if name in ("F32", "F16") else raw
    with np.errstate(all="ignore"):
        expected = peer.quants.dequantize(theirs, peer.GGMLQuantizationType(kind.number)).astype(np.float32)
    ours = dequantise(kind, raw.tobytes(), (40, 3 * kind.size))
    assert peer.GGMLQuantizationType(kind.number).name == name
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_quantised_to_the_byte_as_the_gguf_package_does(name):
    peer = pytest.importorskip("gguf", reason="the gguf package of llama.cpp is not installed")
    values = awkward()
    assert quantise(KINDS[name], values) == peer.quants.quantize(values, peer.GGMLQuantizationType[name]).tobytes()


def awkward():
    values = np.random.default_rng(1).standard_normal((64, 96)).astype(np.float32)
    values[0], values[1], values[2] = 0, values[1] * 1e-9, np.arange(96) * 0.5
    return values


@pytest.mark.parametrize(("name", "bound"), {"F32": 0, "F16": 2**-11, "BF16": 2**-8}.items())
def test_what_is_written_comes_back_within_the_precision_of_the_format(name, bound):
    values = awkward()
    again = dequantise(KINDS[name], quantise(KINDS[name], values), values.shape)
    assert (np.abs(again - values) <= bound * np.abs(values) + (name == "F16") * 2**-25).all()


def test_q8_0_is_off_by_half_a_step_at_most():
    values = awkward()
    again = dequantise(KINDS["Q8_0"], quantise(KINDS["Q8_0"], values), values.shape).reshape(-1, 32)
    largest = np.abs(values.reshape(-1, 32)).max(1, keepdims=True)
    # half a step, and what rounding the scale to a half adds to 127 of them
    assert (np.abs(again - values.reshape(-1, 32)) <= largest / 254 * 1.001 + largest * 2**-11 + 127 * 2**-25).all()
    assert not again[:3].any()


def test_ties_go_away_from_zero():
    row = np.zeros((1, 32), np.float32)
    row[0, :4] = 127, 2.5, -2.5, 0.5
    assert np.frombuffer(quantise(KINDS["Q8_0"], row), KINDS["Q8_0"].block)["q"][0, :4].tolist() == [127, 3, -3, 1]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("F16", [[70_000.0]], "70000 is larger than float16 can hold"),
        ("Q8_0", [[1e9] * 32], "larger than float16 can hold"),
        ("Q8_0", [[1.0] * 33], "rows of 33 values are not whole blocks of 32"),
        ("Q4_K", [[1.0] * 256], "Q4_K is read only; expected one of F32, F16, BF16, Q8_0"),
    ],
)
def test_what_cannot_be_written(name, values, message):
    with pytest.raises(ValueError, match=message):
        quantise(KINDS[name], np.array(values, np.float32))


def test_other_types_are_named():
    with pytest.raises(ValueError, match="type IQ2_XS is not supported; expected one of F32, F16"):
        kind_of(17)
    with pytest.raises(ValueError, match="a type with the number 4 is not supported"):
        kind_of(4)
    with pytest.raises(ValueError, match="'q8' is no format of numbers; did you mean 'Q8_0'"):
        kind_named("q8")
    assert kind_named("q8_0") is KINDS["Q8_0"]
