"""The alpha-beta model finds what made its points; the benchmark's ranks run, agree, and are shown with their fit."""

import json

import pytest

from groundup.bench import REGISTRY, collectives
from groundup.bench.measure import Rates


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_messages_and_bytes_of_the_formulas(ranks):
    steps = {2: 1, 3: 2, 4: 2, 8: 3}[ranks]
    assert [collectives.messages(way, ranks) for way in ("ring", "torch", "rank order", "tree")] == [
        2 * (ranks - 1), 2 * (ranks - 1), 2, 2 * steps,
    ]  # fmt: skip
    ring = 2 * (ranks - 1) / ranks * 120
    assert [collectives.wire_bytes(way, ranks, 120) for way in ("ring", "torch", "rank order", "tree")] == [
        ring, ring, ring, 2 * steps * 120,
    ]  # fmt: skip


def test_a_fit_finds_the_latency_and_the_speed_that_made_the_points():
    alpha, beta = 40e-6, 1 / 3e9
    points = [(6, w, 6 * alpha + beta * w) for w in (6, 1e3, 1e5, 1e7, 1e9)]
    assert collectives.fit(points) == pytest.approx((alpha, beta))


def test_a_fit_is_never_negative():
    assert collectives.fit([(2, w, 1e-9 * w - 1e-6) for w in (1e4, 1e5, 1e6)])[0] == 0.0
    alpha, beta = collectives.fit([(2, 1e6, 1e-3), (2, 2e6, 5e-4)])
    assert beta == 0.0 and alpha > 0


def test_the_table_shows_the_fit_beside_the_measurement():
    def rates(way, size):
        k, w = collectives.messages(way, 4), collectives.wire_bytes(way, 4, size)
        return Rates((1e-5 * k + 1e-9 * w,) * 3)

    found = {size: {way: rates(way, size) for way in ("torch", "ring", "tree")} for size in (4, 4096, 1 << 22)}
    rows, fits = collectives.table(found, 4)
    assert all(row["fitted_ms"] == pytest.approx(row["ms"]) for row in rows)
    assert fits["tree"]["alpha_seconds"] == pytest.approx(1e-5)
    assert [row["ratio"] for row in rows if row["way"] == "ring"] == pytest.approx([1.0] * 3)


def test_two_ranks_run_it(capsys):
    assert "collectives" in REGISTRY
    assert collectives.main(["--rounds", "2", "--largest", "1024"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert [row["bytes"] for row in record["rows"]] == [size for size in (4, 64, 1024) for _ in range(4)]
    assert record["ratio"] == pytest.approx(record["peer"] / record["ours"])
    assert all(row["ms"] > 0 and row["fitted_ms"] > 0 for row in record["rows"])
    assert any("ms fitted" in line for line in shown) and any(line.startswith("ring") for line in shown)


def test_options_out_of_range_are_errors(capsys):
    for wrong in (["--ranks", "1"], ["--rounds", "1"], ["--largest", "4"]):
        with pytest.raises(SystemExit):
            collectives.parse(wrong)
