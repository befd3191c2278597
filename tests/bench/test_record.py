"""What a benchmark leaves: a line, a table, a file; on every system."""

import json
import os

import pytest

from groundup.bench import record
from groundup.bench.record import Record, load_average, print_table, save


def made(**options):
    return Record("x", 2.0, 1.0, "peer", 2.0, "tokens/s", "a CPU", **options)


def test_the_line_is_one_json_object_with_its_date_and_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/groundup", "bench", "x", "--name", "two words"])
    line = made().line()
    assert "\n" not in line
    read = json.loads(line)
    assert read["command"] == "groundup bench x --name 'two words'"
    assert read["date"].endswith("+00:00") and read["ratio"] == 2.0
    assert made(command="given", date="then").command == "given"


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        made(details={"rate": float("nan")}).line()


def test_the_load_where_the_system_says_it():
    assert len(load_average()) == 3


def no_load():
    raise OSError("Load averages are unobtainable")


def test_a_system_that_knows_no_load_has_none(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", no_load)
    assert load_average() == []
    monkeypatch.delattr(os, "getloadavg")  # as on Windows
    assert load_average() == []


def test_saving_writes_into_a_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "checkout", lambda: None)
    with pytest.raises(ValueError, match="an installed package"):
        save(made(), "x-S")
    monkeypatch.setattr(record, "checkout", lambda: tmp_path)
    path = save(made(rows=[{"program": "groundup"}]), "x-S")
    assert path == tmp_path / "benchmarks" / "results" / "x-S.json"
    assert json.loads(path.read_text())["rows"] == [{"program": "groundup"}]


def test_this_is_a_checkout(repository):
    assert record.checkout() == repository


def test_the_table_has_headings_and_readable_numbers(capsys):
    rows = [{"name": "fast", "rate": 12345.6, "share": 0.123, "count": 9876}, {"name": "gone", "rate": None}]
    print_table("title", rows, {"name": "program", "rate": "tokens/s", "share": "share", "count": "n", "note": ""})
    shown = capsys.readouterr().out
    assert shown.startswith("title") and "tokens/s" in shown
    (fast,) = (line for line in shown.splitlines() if "fast" in line)
    assert all(number in fast for number in ("12,346", "0.12", "9,876"))
    assert "None" not in shown
