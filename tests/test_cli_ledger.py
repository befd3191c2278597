"""`groundup report --ledger` and `groundup ledger`."""

import json

import pytest

from groundup.accounting.run_ledger import Ledger
from groundup.bench import record
from groundup.cli import main
from tests.report.conftest import fake_run  # noqa: F401


def test_a_run_is_added_once_and_shown(fake_run, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "runs.json"
    assert main(["ledger", str(file)]) == 1
    assert f"report RUN --ledger {file} begins one" in capsys.readouterr().err
    for _ in range(2):
        assert main(["report", str(fake_run), "--ledger", str(file)]) == 0
        assert capsys.readouterr().out.splitlines() == [str(fake_run / "report.html"), f"{file}: 1 entry"]
    assert main(["ledger", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "fable-run" in shown and "+16.7 %" in shown
    assert main(["ledger", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    step = next(a for a in found["accuracies"] if a["name"] == "step_seconds")
    assert (step["runs"], step["within"], step["goal"]) == (1, 0.0, 0.10)
    assert found["entries"][0]["quantities"][0]["predicted"] == 0.36
    assert main(["ledger", str(file), "--last", "0"]) == 0
    assert "fable-run" not in capsys.readouterr().out


def test_several_runs_are_added_all_or_none(fake_run, tmp_path, capsys):  # noqa: F811
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "plan.json").write_text("{}")
    file = tmp_path / "runs.json"
    assert main(["report", str(fake_run), str(unfinished), "--ledger", str(file)]) == 1
    assert "unfinished: no whole result.json" in capsys.readouterr().err
    assert not file.exists()
    assert (unfinished / "report.html").exists(), "a page is for unfinished runs, too"


def test_without_a_name_it_is_the_checkouts(fake_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(record, "checkout", lambda: None)
    assert main(["report", str(fake_run), "--ledger"]) == 1
    assert "name the ledger's file" in capsys.readouterr().err
    monkeypatch.setattr(record, "checkout", lambda: tmp_path)
    assert main(["report", str(fake_run), "--ledger"]) == 0
    assert len(Ledger.read(tmp_path / "benchmarks" / "results" / "ledger.json").entries) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "entries": [{"run": "\\u001b[2J"}]}'])
def test_a_broken_ledger_is_one_sentence(text, tmp_path, capsys):
    (tmp_path / "runs.json").write_text(text)
    assert main(["ledger", str(tmp_path / "runs.json")]) == 1
    error = capsys.readouterr().err
    assert "runs.json" in error and "\x1b" not in error and len(error.splitlines()) == 1


def test_the_checkouts_own_ledger_is_sound(capsys):
    assert main(["ledger"]) == 0
    assert "build-10m" in capsys.readouterr().out
