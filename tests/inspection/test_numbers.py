"""The table of number types against the standard's own figures, and against counting."""

import math

import pytest
import torch

from groundup.inspection import number_types
from groundup.inspection.numbers import underflow

TYPES = {kind.name: kind for kind in number_types()}


@pytest.mark.parametrize(
    ("name", "bits", "largest", "eps"),
    [
        ("fp32", (32, 8, 23), (2 - 2**-23) * 2.0**127, 2**-23),
        ("bf16", (16, 8, 7), (2 - 2**-7) * 2.0**127, 2**-7),
        ("fp16", (16, 5, 10), 65504, 2**-10),
        ("fp8 e4m3", (8, 4, 3), 448, 2**-3),  # one code is NaN and none is infinite
        ("fp8 e5m2", (8, 5, 2), 57344, 2**-2),
    ],
)
def test_figures_of_the_standards(name, bits, largest, eps):
    kind = TYPES[name]
    assert (kind.bits, kind.exponent_bits, kind.mantissa_bits) == bits
    assert (kind.largest, kind.eps) == (largest, eps)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8 e4m3", "fp8 e5m2"])
def test_range_by_looking_at_every_code(name):
    kind = TYPES[name]
    codes = torch.arange(2**kind.bits).to(torch.uint8 if kind.bits == 8 else torch.uint16)
    values = codes.view(kind.dtype).double()
    positive = values[values.isfinite() & (values > 0)]
    assert (positive.min().item(), positive.max().item()) == (kind.tiny, kind.largest)
    above_one = positive[positive > 1].min().item()
    assert above_one - 1 == kind.eps


def test_a_small_number_vanishes_in_fp16_and_is_kept_in_bf16():
    stored = underflow(1e-8)
    assert stored["fp16"] == stored["fp8 e4m3"] == stored["fp8 e5m2"] == 0
    assert stored["bf16"] == pytest.approx(1e-8, rel=TYPES["bf16"].eps / 2)
    assert math.isinf(underflow(1e5)["fp16"])
