"""From run folders to entries of the ledger, and its tables."""

import json
import os

import pytest

from groundup.accounting.run_ledger import Ledger, Quantity
from groundup.report.ablation import VARIANT_KEYS
from groundup.report.ledger import accuracy_table, entries_of, entry_table, identity, recorded_build
from groundup.report.tables import to_text
from tests.test_readme import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"


def rewrite(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_entry_has_the_figures_of_the_run(fake_run):
    rewrite(fake_run / "result.json", date="2026-02-03T04:05:06+00:00")
    (entry,) = entries_of(fake_run)
    assert (entry.verb, entry.name, entry.date) == ("build", "fable-run", "2026-02-03T04:05:06+00:00")
    assert (entry.parameters, entry.tokens, entry.threads) == (5_678_901, 9_830_400, 2)
    assert entry.device == "Imaginary CPU (2 cores)" and entry.versions == {"groundup": "0.0.0", "torch": "9.9"}
    assert entry.quantity("step_seconds") == Quantity.of("step_seconds", 0.36, 0.42)
    assert entry.quantity("nats_per_token") == Quantity.of("nats_per_token", 4.1, 4.13)
    assert entry.quantity("mfu") is None, "this run predicted none, and none is made up"


def test_a_run_that_does_not_say_when_it_ended_has_its_files_date(fake_run):
    os.utime(fake_run / "result.json", (86_400 * 365, 86_400 * 365))
    assert entries_of(fake_run)[0].date == "1971-01-01T00:00:00+00:00"


def test_a_moved_and_a_reported_run_is_the_same_run_and_another_is_not(fake_run, tmp_path):
    from groundup.report import write_report

    rewrite(fake_run / "result.json", run=str(fake_run))
    run = entries_of(fake_run)[0].run
    write_report(fake_run)
    moved = fake_run.rename(tmp_path / "elsewhere")
    rewrite(moved / "result.json", run=str(moved))
    assert entries_of(moved)[0].run == run
    rewrite(moved / "result.json", seconds=588.01)
    assert entries_of(moved)[0].run != run


def test_a_zero_is_no_measurement(fake_run):
    result = json.loads((fake_run / "result.json").read_text())
    rewrite(fake_run / "result.json", measured={**result["measured"], "peak_memory_bytes": 0, "step_seconds": None})
    (entry,) = entries_of(fake_run)
    assert entry.quantity("peak_memory_bytes") == Quantity.of("peak_memory_bytes", 3_100_000_000, None)
    assert entry.quantity("step_seconds").error is None


def test_what_is_not_finished_or_predicted_nothing_is_refused(fake_run, tmp_path):
    with pytest.raises(ValueError, match="no such run folder"):
        entries_of(tmp_path / "absent")
    rewrite(fake_run / "env.json", device="\x1b[31m")
    with pytest.raises(ValueError, match=r"fable-run: device: .*printable"):
        entries_of(fake_run)
    rewrite(fake_run / "env.json", device="x")
    rewrite(fake_run / "plan.json", predicted={})
    rewrite(fake_run / "result.json", predicted={})
    with pytest.raises(ValueError, match="nothing in it was both predicted and measured"):
        entries_of(fake_run)
    (fake_run / "result.json").unlink()
    with pytest.raises(ValueError, match="only a finished run"):
        entries_of(fake_run)


def comparison_folder(folder, settings="ablation"):
    """What `groundup ablate` leaves, as far as the ledger reads it."""
    folder.mkdir(parents=True)
    rows = [
        dict.fromkeys(VARIANT_KEYS)
        | {"name": name, "parameters": 100, "tokens": 960, "seconds": 2.0, "predicted": {"step_seconds": 0.05},
         "measured": {"step_seconds": measured}}
        for name, measured in (("base", 0.055), ("wide", 0.06), ("lost", None))
    ]  # fmt: skip
    result = {"variants": rows, "comparisons": [], "notes": [], "settings": {"precision": "fp32", "seeds": 3}}
    (folder / "result.json").write_text(json.dumps(result))
    environment = {"device": "Imaginary CPU", "threads": 2, "versions": {"torch": "9.9"}}
    (folder / "config.json").write_text(json.dumps({settings: {}, "environment": environment}))
    return folder


def test_a_comparison_has_an_entry_for_each_variant_that_was_measured(tmp_path):
    base, wide = entries_of(comparison_folder(tmp_path / "pair"))
    assert (base.verb, base.name, base.precision) == ("ablate", "pair: base", "fp32")
    assert base.quantities[0].error == pytest.approx(0.10) and wide.quantities[0].error == pytest.approx(0.20)
    assert base.run != wide.run and base.run.partition(":")[0] == wide.run.partition(":")[0]


def test_a_history_has_those_of_its_trained_rungs(tmp_path):
    comparison_folder(tmp_path / "past" / "neural")
    (tmp_path / "past" / "config.json").write_text('{"history": {}}')
    assert [(e.verb, e.name) for e in entries_of(tmp_path / "past")] == [
        ("history", "past: base"),
        ("history", "past: wide"),
    ]


def test_tables_show_signs_units_and_gaps(fake_run):
    ledger = Ledger(entries_of(fake_run))
    shown = to_text(accuracy_table(ledger))
    assert "1 run: errors" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("step")] == [
        ["step", "time", "1", "16.7", "%", "+16.7", "%", "±", "10.0", "%", "0", "%"]
    ]
    assert "+0.030 nats" in shown and "± 0.020 nats" in shown
    row = to_text(entry_table(ledger.entries)).splitlines()[-1]
    assert "fable-run" in row and "+16.7 %" in row and "−2.0 %" in row and "5.68 M" in row


def test_the_recorded_build_is_in_the_ledger_figure_by_figure():
    ledger = Ledger.read(RESULTS / "ledger.json")
    entry = recorded_build(RESULTS / "build-10m.json")
    assert entry in ledger.entries
    stored = json.loads((RESULTS / "build-10m.json").read_text())["result"]
    assert entry.quantity("step_seconds").predicted == stored["predicted"]["step_seconds"]
    assert entry.quantity("total_seconds").measured == stored["measured"]["total_seconds"] == stored["seconds"]
    assert entry.run == identity({**stored, "run": "wherever it lay"})
    with pytest.raises(ValueError, match="expected the record of a build"):
        recorded_build(RESULTS / "train-step-S.json")
