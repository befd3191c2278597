"""Races of tokenizers with stubs for them: who leads, whose output differs, who is absent and why."""

import json

import pytest

from groundup.bench import tokenizer_race
from groundup.bench.measure import Rates
from groundup.bench.race import Entry, Setting
from groundup.bench.tokenizer_race import (
    MICROSECONDS,
    OURS,
    RIVAL,
    SECONDS,
    SLOW_ROUNDS,
    SPEED,
    Cell,
    Outcome,
    Races,
    Try,
    side_scripts,
)
from groundup.bench.tokenizer_record import compare, lead, print_tables, rows, values

SIDE = """
VERSIONS = {{"{name}": "1"}}

def encode(task):
    if {broken!r}:
        raise ValueError({broken!r})
    return lambda: {ids!r}, lambda output: [output]

WORKS = {{"encode": encode}}
"""
TRIES = [Try(name, "encode", f"{name}.encode") for name in (OURS, RIVAL, "wrong", "broken", "absent", "unpacked")]


@pytest.fixture
def races(tmp_path, monkeypatch):
    def side(name, ids, broken=""):
        path = tmp_path / f"{name}.py"
        path.write_text(SIDE.format(name=name, ids=ids, broken=broken), "utf-8")
        return path, "json"

    sides = {
        OURS: side(OURS, [1, 2, 3]),
        RIVAL: side(RIVAL, [1, 2, 99, 3]),
        "wrong": side("wrong", [1, 2, 4, 4]),
        "broken": side("broken", [], "cannot read this vocabulary"),
        "absent": (tmp_path / "absent.py", "no_such_package_at_all"),
        "unpacked": (None, "json"),
    }
    monkeypatch.setattr(tokenizer_race, "side_scripts", lambda: sides)
    return Races(tmp_path, seconds=0.0, turn_seconds=0.001)


def cell(tmp_path, title="documents", **changes):
    options = {"text": str(tmp_path / "text.txt"), "cut": "2 MB", "vocab_size": 100, "end_of_text": 99}
    return Cell(title, 1, **{"unit": SPEED, "amount": 2.0, "tries": TRIES, "options": options} | changes)


def test_everyone_is_compared_or_has_a_reason(races, tmp_path):
    headline = cell(tmp_path)
    outcomes = races.run([headline])
    ours, rival, wrong, broken, absent, unpacked = rows(outcomes)
    assert (ours["check"], rival["check"]) == ("the reference", "identical")
    assert wrong["check"] == "DIFFERS: 4 against 3"
    assert "cannot read this vocabulary" in broken["note"] and broken["value"] is None
    assert "make peers" in absent["note"] and "installed package" in unpacked["note"]
    assert ours["ratio"] is None and rival["ratio"] == pytest.approx(ours["value"] / rival["value"])
    assert all(row["peak_gb"] > 0 for row in (ours, rival, wrong))

    record = compare("x", outcomes, headline, {"quick": True})
    assert record.peer_name == f"{RIVAL} ({RIVAL}.encode)"
    assert record.peer and record.ratio == pytest.approx(record.ours / record.peer)
    assert record.details["differing_outputs"] == ["documents, 1 thread: wrong (wrong.encode)"]
    assert [title.split()[-2] for title in record.details["not_measured"]] == ["broken", "absent", "unpacked"]
    assert len(record.details["measured"]) == 3 and all(len(m) >= 3 for m in record.details["measured"].values())
    assert record.versions == {OURS: "1", RIVAL: "1", "wrong": "1"}
    line = json.loads(record.line())
    assert {"name", "ours", "peer", "peer_name", "ratio", "unit", "device"} <= line.keys()
    assert line["details"]["headline"] == "documents, 1 thread"


@pytest.mark.parametrize("state", ["cold", "new", "fresh"])
def test_differing_ids_are_seen_in_every_state(races, tmp_path, state):
    table = rows(races.run([cell(tmp_path, state=state, tries=TRIES[:3])]))
    assert [row["check"] for row in table] == ["the reference", "identical", "DIFFERS: 4 against 3"]


def test_a_cut_of_its_own_is_compared_with_ours_on_that_cut(races, tmp_path):
    """A slow program works on less: its ids are compared with those of ours in the cell with that text."""
    other = {"text": str(tmp_path / "small.txt"), "amount": 1.0, "cut": "1 MB"}
    whole = cell(tmp_path, tries=[TRIES[0], Try("wrong", "encode", "slow", options=other)])
    small = cell(tmp_path, "small", tries=TRIES[:1], options=whole.options | other)
    without, outcome = races.run([whole, small])
    assert [row["check"] for row in rows([without])] == ["the reference", ""]
    table = rows([without, outcome])
    assert [row["check"] for row in table] == ["the reference", "DIFFERS: 4 against 3", "the reference"]
    assert [row["cut"] for row in table] == ["2 MB", "1 MB", "1 MB"]


def test_what_is_known_to_be_right_goes_before_ours(races, tmp_path):
    right = {"sha256": "0" * 64, "count": 5}
    table = rows(races.run([cell(tmp_path, tries=TRIES[:2], expected=right)]))
    assert [row["check"] for row in table] == ["DIFFERS: 3 against 5"] * 2


def test_slow_programs_have_a_few_turns_and_no_more(races, tmp_path):
    (outcome,) = races.run([cell(tmp_path, slow=True)])
    measured = [entry.rates and len(entry.rates.values) for entry in outcome.entries]
    assert measured == [SLOW_ROUNDS] * 3 + [None] * 3
    assert outcome.checks[0]["count"] == 3


def entry(program, *rates, **options):
    return Entry(Setting(program, "way", options), Rates(rates), peak_bytes=1)


def test_units_and_who_leads(tmp_path):
    fast, slow = entry(OURS, 4.0, 5.0, 6.0), entry(RIVAL, 2.0, 2.0, 2.0)
    for unit, amount, shown in ((SPEED, 100.0, 500.0), (SECONDS, 1.0, 0.2), (MICROSECONDS, 1000, 200.0)):
        made = cell(tmp_path, unit=unit, amount=amount)
        assert values(made, fast).median == pytest.approx(shown)
        assert lead(made, fast, slow) == pytest.approx(2.5)
        assert lead(made, slow, fast) == pytest.approx(0.4)
        assert lead(made, None, fast) is lead(made, fast, None) is None
    assert values(cell(tmp_path), entry(RIVAL, 2.0, amount=10.0)).median == 20.0  # its own cut


def test_the_best_way_of_each_counts(tmp_path):
    made = cell(tmp_path)
    entries = [entry(OURS, 1.0), entry(OURS, 3.0), entry(RIVAL, 2.0), Entry(Setting(RIVAL, "failed", {}), failure="x")]
    outcome = Outcome(made, entries, [None] * 4)
    assert (outcome.best(OURS), outcome.best(RIVAL), outcome.best("nobody")) == (entries[1], entries[2], None)


def test_one_table_per_cell(races, tmp_path, capsys):
    first, second = cell(tmp_path, tries=TRIES[:3]), cell(tmp_path, "lists", tries=TRIES[:1])
    record = compare("x", races.run([first, second]), first, {})
    capsys.readouterr()
    print_tables(record)
    shown = capsys.readouterr().out
    assert shown.index("documents, 1 thread") < shown.index("DIFFERS") < shown.index("lists, 1 thread")


def test_sides_exist(repository):
    scripts = side_scripts()
    assert scripts[OURS][1] == "groundup"
    assert all(script.is_file() for script, _ in scripts.values())
    pinned = (repository / "benchmarks" / "peers" / "requirements.txt").read_text("utf-8")
    assert all(f"{package}==" in pinned for program, (_, package) in scripts.items() if program != OURS)
