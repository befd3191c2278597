import sys

import pytest

from groundup.bench.measure import Rates
from groundup.bench.race import Contest, Entry, Program, Setting, fastest
from groundup.bench.record import checkout
from groundup.bench.worker import Worker

SLEEPER = """
import time
def prepare(options):
    if options.get("broken"):
        raise ValueError("cannot be set like this")
    turns = []
    def run(k):
        turns.append(k)
        if options.get("dies") and len(turns) > 2:
            raise MemoryError("out of memory")
        time.sleep(k * options["unit_seconds"])
        return {"peak_bytes": 7}
    return {"name": options["name"]}, run
"""


@pytest.fixture
def contest(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER, "utf-8")
    programs = {"sleeper": Program(script, "json"), "absent": Program(script, "no_such_package_at_all")}
    return Contest(programs, {"name": "x", "unit_seconds": 0.001}, turn_seconds=0.02)


def test_everyone_is_measured_or_has_a_reason(contest):
    settings = [
        Setting("sleeper", "slow", {"unit_seconds": 0.02}),
        Setting("sleeper", "fast", {}),
        Setting("sleeper", "broken", {"broken": True}),
        Setting("sleeper", "dies", {"dies": True}),
        Setting("absent", "any", {}),
    ]
    slow, fast, broken, dies, absent = contest.race(settings)
    assert slow.rates and fast.rates and len(fast.rates.values) == 3
    assert (fast.peak_bytes, fast.facts["name"]) == (7, "x")
    assert fast.turn_units > slow.turn_units == 1
    assert broken.rates is None and "cannot be set like this" in broken.failure
    assert dies.rates is None and "out of memory" in dies.failure
    assert absent.rates is None and "make peers" in absent.failure


def test_nobody_can_race(contest):
    (entry,) = contest.race([Setting("absent", "any", {})])
    assert entry.rates is None and fastest([entry]) is None


def test_the_fastest_by_median():
    wild = Entry(Setting("a", "wild", {}), Rates((1.0, 1.0, 99.0)))
    steady = Entry(Setting("a", "steady", {}), Rates((2.0, 2.0, 2.0)))
    failed = Entry(Setting("a", "failed", {}), failure="no")
    assert fastest([wild, failed, steady]) is steady


def test_which_interpreter():
    assert Program(checkout(), "json").python == sys.executable
    assert Program(None, "json").absence is not None


def test_a_program_sees_no_variable_that_groundup_set_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    script = tmp_path / "looker.py"
    script.write_text(
        "import os\ndef prepare(options):\n"
        "    return {name: os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'OMP_NUM_THREADS')}, None\n", "utf-8"
    )  # fmt: skip
    with Program(script, "json").start({"threads": 2}) as worker:
        assert worker.facts["OMP_WAIT_POLICY"] is None and worker.facts["OMP_NUM_THREADS"] == "2"


def test_libraries_that_a_package_wants_first_are_named_where_they_are(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Worker, "__init__", lambda self, *arguments, **options: started.append(arguments[3]))
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libhere.so").touch()
    monkeypatch.setattr("groundup.bench.race.sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    Program(tmp_path / "x.py", "json", ("lib/libhere.so", "lib/libaway.so")).start({})
    Program(tmp_path / "x.py", "json", ("lib/libaway.so",)).start({})
    assert started[0]["LD_PRELOAD"] == str(tmp_path / "lib" / "libhere.so") and "LD_PRELOAD" not in started[1]
