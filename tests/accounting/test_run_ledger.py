"""The ledger of runs: errors by hand, one entry for each run, and files that are not to be trusted."""

import json
import math
from dataclasses import asdict, replace

import pytest

from groundup.accounting.run_ledger import QUANTITIES, Entry, Ledger, Quantity, add_to


def entry(run="a", date="2026-01-02", **pairs):
    """`pairs`: name -> (predicted, measured)."""
    quantities = tuple(Quantity.of(name, *pair) for name, pair in (pairs or {"step_seconds": (0.1, 0.108)}).items())
    return Entry(
        run=run, verb="build", name="fable", date=date, device="Imaginary CPU", parameters=1000, tokens=2000,
        quantities=quantities, versions={"torch": "9.9"}, commit="0123", precision="bf16", threads=2,
    )  # fmt: skip


def test_errors_by_hand():
    step = Quantity.of("step_seconds", 0.100, 0.108)
    assert step.error == pytest.approx(0.08) and step.met
    memory = Quantity.of("peak_memory_bytes", 1e9, 9.4e8)
    assert memory.error == pytest.approx(-0.06) and memory.met is False
    loss = Quantity.of("nats_per_token", 3.50, 3.53)
    assert loss.error == pytest.approx(0.03) and loss.met is False, "absolute, in nats"
    assert Quantity.of("bits_per_byte", 1.0, 1.5).met is None, "has no goal"


@pytest.mark.parametrize(
    ("name", "predicted", "measured"),
    [("step_seconds", 100, 110), ("total_seconds", 600, 630), ("peak_memory_bytes", 100, 95)],
)
def test_a_goal_that_is_just_reached_is_met(name, predicted, measured):
    assert Quantity.of(name, predicted, measured).met
    assert Quantity.of(name, predicted, 2 * measured).met is False


def test_without_both_figures_there_is_no_error():
    for quantity in (Quantity.of("mfu", None, 0.4), Quantity.of("mfu", 0.4, None), Quantity.of("step_seconds", 0, 1)):
        assert quantity.error is None and quantity.met is None


def test_accuracies_by_hand():
    ledger = Ledger()
    for run, measured in (("a", 1.08), ("b", 0.80), ("c", 1.01)):
        ledger.add(entry(run, step_seconds=(1.0, measured), nats_per_token=(3.0, None)))
    (step,) = ledger.accuracies()
    assert (step.name, step.runs, step.goal) == ("step_seconds", 3, 0.10)
    assert step.median == pytest.approx(0.08) and step.worst == pytest.approx(-0.20)
    assert step.within == pytest.approx(2 / 3)


def test_a_run_has_one_entry_and_the_newest_stands_last():
    ledger = Ledger()
    assert not ledger.add(entry("new", "2026-03-01T10:00:00+02:00"))
    assert not ledger.add(entry("newer", "2026-03-01T09:00:00+00:00"))
    assert not ledger.add(entry("old", "2026-01-01"))
    assert ledger.add(entry("new", "2026-03-01T10:00:00+02:00", mfu=(0.5, 0.4)))
    assert [each.run for each in ledger.entries] == ["old", "new", "newer"]
    assert ledger.entries[1].quantity("mfu") == Quantity.of("mfu", 0.5, 0.4)


def test_what_is_written_is_read_again(tmp_path):
    file = tmp_path / "folder" / "ledger.json"
    made = add_to(file, [entry("a"), entry("b", total_seconds=(600.0, 588.5), peak_memory_bytes=(8, 9))])
    assert Ledger.read(file) == made
    before = file.read_bytes()
    assert add_to(file, [entry("a")]) == made and file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["ledger.json"], "no temporary file is left"


def test_a_write_that_fails_leaves_the_old_ledger(tmp_path, monkeypatch):
    file = tmp_path / "ledger.json"
    add_to(file, [entry("a")])
    before = file.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundup.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        add_to(file, [entry("b")])
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def changed(**changes):
    return {**asdict(entry()), **changes}


def quantity(**changes):
    return changed(quantities=[{"name": "mfu", "unit": QUANTITIES["mfu"].unit, "predicted": 0.5, "measured": 0.4}
                               | changes])  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([], "expected an object, not"),
        (changed(parmeters=3), "parmeters.*did you mean 'parameters'"),
        ({k: v for k, v in changed().items() if k != "run"}, "needs run"),
        (changed(parameters=-1), "parameters: expected a whole number"),
        (changed(parameters=10**30), "parameters: expected a whole number"),
        (changed(parameters=True), "parameters: expected a whole number"),
        (changed(tokens=1.5), "tokens: expected a whole number"),
        (changed(name=""), "name: ''; expected a line"),
        (changed(name="x" * 300), "name: .*expected a line of 1 to 200"),
        (changed(device="\x1b[2J"), r"device: '\\x1b\[2J'; expected"),
        (changed(versions={"torch": 9}), "versions.torch"),
        (changed(versions=["torch"]), "versions: expected an object"),
        (changed(date="yesterday"), "date: 'yesterday'; expected ISO 8601"),
        (changed(quantities={}), "quantities: expected a list"),
        (changed(quantities=[3]), r"quantities\[0\]"),
        (changed(quantities=changed()["quantities"] * 2), "step_seconds stands there twice"),
        (changed(kind=[]), r"entries\[0\]"),
        (quantity(name="step_second"), "'step_second' is unknown; did you mean 'step_seconds'"),
        (quantity(name=[]), "name: expected text"),
        (quantity(unit="bytes"), "mfu: unit 'bytes'; expected 'share"),
        (quantity(measured=1.5), "mfu: measured 1.5; expected a finite number from 0 to 1"),
        (quantity(predicted=-0.5), "mfu: predicted -0.5"),
        (quantity(predicted=math.nan), "mfu: predicted nan"),
        (quantity(predicted=math.inf), "mfu: predicted inf"),
        (quantity(predicted=10**400), "too large"),
        (quantity(predicted="0.5"), "predicted: expected a number"),
    ],
)
def test_hostile_entries_are_refused_with_their_place(stored, message, tmp_path):
    file = tmp_path / "ledger.json"
    file.write_text(json.dumps({"format": 1, "entries": [stored]}))
    with pytest.raises(ValueError, match=message) as refused:
        Ledger.read(file)
    assert "ledger.json: entries[0]" in str(refused.value) and len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"format": 2, "entries": []}', '{"format": 1, "entries": {}}', "{", "\ud800",
     "[" * 100_000, '{"format": 1, "entries": [' + "9" * 5000 + "]}"],
)  # fmt: skip
def test_what_is_no_ledger_is_refused_by_name(text, tmp_path):
    file = tmp_path / "odd.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"odd\.json"):
        Ledger.read(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"odd\.json"):
        add_to(file, [entry()])
    assert file.read_bytes() == before, "what is no ledger is not written over"


def test_a_run_twice_in_a_file_is_refused(tmp_path):
    stored = {"format": 1, "entries": [asdict(entry("a")), asdict(entry("b")), asdict(entry("a"))]}
    with pytest.raises(ValueError, match=r"entries\[2\]: run 'a' stands there twice"):
        Ledger.from_json(stored)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("groundup.accounting.run_ledger.MOST_FILE_BYTES", 50)
    add_to(tmp_path / "ledger.json", [])
    add_to(tmp_path / "ledger.json", [entry()])
    with pytest.raises(ValueError, match="larger than"):
        Ledger.read(tmp_path / "ledger.json")


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_the_ends_of_the_calendar_sort(date):
    ledger = Ledger([entry("a")])
    ledger.add(replace(entry("b"), date=date))
    assert [each.run for each in ledger.entries] == (["b", "a"] if date < "2" else ["a", "b"])
