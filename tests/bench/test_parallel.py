"""What is compared is the slowest of ours beside torch's own; the benchmark's ranks train alike and are timed."""

import json

import pytest

from groundup.bench import REGISTRY, parallel
from groundup.bench.parallel_program import check_alike


def test_the_record_is_of_the_way_that_is_slowest_beside_torchs():
    found = [
        {"our DDP": [1.0, 1.0], "torch DDP": [2.0, 2.0], "our FSDP": [1.0, 1.0], "torch FSDP": [1.0, 3.0]},
        {"our DDP": [0.5, 0.5], "torch DDP": [0.4, 0.4], "our FSDP": [1.0, 1.0], "torch FSDP": [1.0, 1.0]},
    ]
    rows = parallel.table(found, [(2, 8), (1, 4)], ranks=2)
    assert [row["ratio"] for row in rows] == pytest.approx([2.0, None, 1.5, None, 0.8, None, 1.0, None])
    assert [row["rate"] for row in rows[:4]] == pytest.approx([32, 16, 32, (32 + 32 / 3) / 2])
    least = parallel.worst(rows)
    assert (least["way"], least["tokens"], least["peer"]) == ("our DDP", 4, pytest.approx(20))


def test_a_way_that_trains_otherwise_is_no_way():
    check_alike({"torch DDP": [9.0, 8.0], "our DDP": [9.0, 8.0001]})
    with pytest.raises(AssertionError, match=r"our DDP has losses \[9.0, 8.1\]"):
        check_alike({"torch DDP": [9.0, 8.0], "our DDP": [9.0, 8.1]})


def test_two_ranks_run_it(capsys):
    assert "parallel" in REGISTRY
    assert parallel.main(["--rounds", "2", "--steps", "1", "--layers", "1"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert [row["way"] for row in record["rows"]] == [*record["details"]["seconds"][0]] * 2
    assert record["ratio"] == pytest.approx(record["ours"] / record["peer"])
    assert record["ratio"] == min(row["ratio"] for row in record["rows"] if row["ratio"])
    assert any("our FSDP" in line for line in shown)


def test_options_out_of_range_are_errors():
    for wrong in (["--ranks", "1"], ["--rounds", "1"], ["--steps", "0"]):
        with pytest.raises(SystemExit):
            parallel.parse(wrong)
