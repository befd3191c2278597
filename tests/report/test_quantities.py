import doctest
import math

import pytest

from groundup.report import quantities, scores, tables
from groundup.report.quantities import MISSING, binary, count, decimal, duration, label, number, plain, quantity


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("seconds", 0, "0 s"),
        ("seconds", 5e-6, "5 µs"),
        ("step_seconds", 0.9996, "1,000 ms"),
        ("seconds", 59.94, "59.9 s"),
        ("seconds", 60, "1 min 00 s"),
        ("seconds", 3599.6, "1 h 00 min"),
        ("peak_memory_bytes", 512, "512 bytes"),
        ("bytes", 1536, "1.50 KiB"),
        ("training_flops", 3.35e14, "335 TFLOP"),
        ("gemm_flops_per_second", 9.2e10, "92.0 GFLOP/s"),
        ("bytes_per_second", 2.1e10, "21.0 GB/s"),
        ("tokens_per_second", 20_123.4, "20,123"),
        ("bits_per_byte", 1.9512, "1.951"),
        ("loss", 3.4, "3.400 nats/token"),
        ("mfu", 0.4123, "41.2 %"),
        ("cost_usd", 12.5, "12.50 USD"),
        ("energy_joules", 41_000, "41.0 kJ"),
        ("power_watts", 65, "65 W"),
        ("epochs", 3.2, "3.20"),
        ("parameters", 5_678_901, "5,678,901"),
        ("learning_rate", 0.0003, "0.0003"),
        ("seconds", None, MISSING),
        ("seconds", math.nan, MISSING),
        ("seconds", "soon", "soon"),
        ("compiled", True, "yes"),
        ("blocks", [1, 2], "2 entries"),
    ],
)
def test_quantities(name, value, text):
    assert quantity(name, value) == text


def test_labels():
    assert label("peak_memory_bytes") == "peak memory"
    assert label("step_seconds") == "step time"
    assert label("tokens_per_second") == "tokens per second"
    assert label("train_bytes") == "train bytes"
    assert label("mfu") == "MFU"


@pytest.mark.parametrize("value", [None, "1", True, math.inf, math.nan, [], 10**400])
def test_what_is_no_number(value):
    assert number(value) is None


def test_scales():
    assert binary(3 * 2**40) == "3.00 TiB"
    assert decimal(1234, "B") == "1.23 kB"
    assert decimal(-5e6, "") == "-5.00 M"
    assert count(1234.5678) == "1235"
    assert duration(7322) == "2 h 02 min"
    assert plain({}) == "0 entries"


@pytest.mark.parametrize("module", [quantities, tables, scores])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
