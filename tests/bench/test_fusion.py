"""The bytes of a formula: by hand, by counting, and in the benchmark's table."""

import json

import pytest
import torch

from groundup.bench import fusion

ROWS, D = 16, 64


def inputs(op, dtype=torch.float32):
    return fusion.FORMULAS[op].inputs(ROWS, D, dtype, torch.device("cpu"))


def test_gelu_one_operation_at_a_time_moves_nine_times_what_it_must():
    """Eight operations: six of one operand, two of two. Counted where torch runs them."""
    traffic = fusion.counted(fusion.gelu, inputs("gelu"))
    assert (traffic.operations, traffic.bytes) == (8, 18 * ROWS * D * 4)
    own = fusion.counted(fusion.FORMULAS["gelu"].own, inputs("gelu"))
    assert (own.operations, own.bytes) == (1, 2 * ROWS * D * 4)


def test_rmsnorm_of_a_sum_moves_ten_passes_and_little_else():
    """Besides: the mean is written; eps, rsqrt and the product read and write a number per row; the gain is read."""
    traffic = fusion.counted(fusion.add_rmsnorm, inputs("add_rmsnorm"))
    assert traffic.bytes == 4 * (10 * ROWS * D + (1 + 2 + 2 + 1) * ROWS + D)
    assert traffic.operations == 7


@pytest.mark.parametrize("op", fusion.FORMULAS)
def test_the_ways_compute_the_same(op):
    formula, given = fusion.FORMULAS[op], inputs(op)
    torch.testing.assert_close(formula.plain(*given), formula.own(*given))


def test_half_the_bytes_in_half_the_precision():
    full, half = (fusion.counted(fusion.gelu, inputs("gelu", dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert full.bytes == 2 * half.bytes


def test_a_view_moves_nothing():
    x = torch.zeros(4, 6)
    assert fusion.counted(lambda x: x.T.reshape(6, 4)[1:].unflatten(1, (2, 2)), (x,)).bytes == 0


def test_the_last_line_is_json_and_the_table_shows_the_prediction(capsys):
    options = ["--op", "gelu", "--rows", "64", "--d", "64", "--seconds", "0.05", "--no-compile", "--device", "cpu"]
    assert fusion.main(options) == 0
    *table, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert [row["predicted_mb"] * 1e6 for row in record["rows"]] == [n * 64 * 64 * 4 for n in (2, 18, 2)]
    assert all(row["counted_mb"] == row["predicted_mb"] for row in record["rows"])
    copy = record["rows"][0]
    assert copy["predicted_ms"] == pytest.approx(copy["measured_ms"])  # what the bandwidth is taken from
    assert any("MB by formula" in line for line in table)


def test_options_out_of_range_are_errors(capsys):
    with pytest.raises(SystemExit):
        fusion.main(["--rows", "0"])
    assert "--rows" in capsys.readouterr().err
