"""The program that every tokenizer is measured through, with a stub for the tokenizer."""

import json
import sys
from pathlib import Path

import pytest

from groundup.bench import tokenizer_turns
from groundup.bench.tokenizer_turns import SEPARATOR, Task, Turns, prepare
from groundup.bench.worker import Worker, WorkerFailed

STUB = """
import os, sys, time
VERSIONS = {"stub": "1.2"}
made = []

def lengths(task):
    if task.options.get("broken"):
        raise ValueError("no such vocabulary")
    print("noise")
    time.sleep(task.options.get("sleeps", 0))
    made.append(task)
    texts = task.texts
    def call():
        made.append("call")
        if task.options.get("dies"):
            sys.exit("out of memory")
        return [len(text) for text in texts]
    return call, lambda output: [output]

WORKS = {"lengths": lengths}
"""


@pytest.fixture
def options(tmp_path):
    side, text = tmp_path / "stub_side.py", tmp_path / "text.txt"
    side.write_text(STUB, "utf-8")
    text.write_bytes(f"one{SEPARATOR}three{SEPARATOR}\r\n".encode())
    return {
        "side": str(side),
        "work": "lengths",
        "text": str(text),
        "threads": 1,
        "state": "warm",
        "short": False,
        "end_of_text": 99,
        "check_kind": "ids",
        "check": str(tmp_path / "check.json"),
    }


def turns(options):
    side = tokenizer_turns.load(options["side"])
    return side, Turns(side, options)


def test_a_warm_job_is_made_once(options):
    side, made = turns(options)
    said = [made.run(units) for units in (1, 3)]
    assert [m for m in side.made if m != "call"] == [made.task]
    assert side.made.count("call") == 4
    assert all(s["seconds"] > 0 and s["peak_bytes"] > 0 for s in said)


def test_a_new_job_is_made_for_every_call(options):
    side, made = turns(options | {"state": "new"})
    made.run(3)
    assert side.made == [made.task, "call"] * 3


def test_a_warm_up_has_a_task_of_its_own(options, tmp_path):
    small = tmp_path / "small.txt"
    small.write_text("x", "utf-8")
    side, made = turns(options | {"warm_up": {"text": str(small)}})
    first, call, second = side.made
    assert (first.path, call, second.path) == (small, "call", made.task.path)


def test_short_calls_are_all_made(options):
    side, made = turns(options | {"short": True})
    made.run(1000)
    assert side.made.count("call") == 1001  # and one for the check


def test_the_first_output_is_checked_and_no_other(options, tmp_path):
    _, made = turns(options)
    made.run(1)
    check = tmp_path / "check.json"
    assert json.loads(check.read_text("utf-8"))["count"] == 3
    check.unlink()
    made.run(2)
    assert not check.exists()


def test_fresh_processes(options, tmp_path):
    facts, run = prepare(options | {"state": "fresh"})
    assert facts == {"versions": {"stub": "1.2"}}
    said = run(2)
    assert said["seconds"] > 0 and said["peak_bytes"] > 1_000_000
    assert json.loads((tmp_path / "check.json").read_text("utf-8"))["count"] == 3


def test_a_cold_call_is_the_first_of_its_process_and_alone_in_the_time(options):
    _, run = prepare(options | {"state": "cold", "sleeps": 0.5})
    _, whole = prepare(options | {"state": "fresh", "sleeps": 0.5})
    said, fresh = run(1), whole(1)["seconds"]
    assert 0 < said["seconds"] < fresh - 0.5  # making the job sleeps
    assert said["elapsed"] > 0.5  # which is what a turn takes


@pytest.mark.parametrize(("fault", "reason"), [("broken", "no such vocabulary"), ("dies", "out of memory")])
def test_a_fresh_process_that_fails_says_why(options, fault, reason):
    _, run = prepare(options | {"state": "fresh", fault: True})
    with pytest.raises(RuntimeError, match=f"ended with code 1: .*{reason}"):
        run(1)


def test_in_a_worker(options):
    program = Path(tokenizer_turns.__file__)
    with Worker(sys.executable, program, options) as worker:
        assert worker.facts["versions"] == {"stub": "1.2"}
        assert worker.run(2)["seconds"] < 60
    with pytest.raises(WorkerFailed, match="ValueError: no such vocabulary"):
        Worker(sys.executable, program, options | {"broken": True})


def test_documents_are_read_as_they_are(options):
    assert Task(options).texts == ["one", "three", "\r\n"]


def test_strings_of_200_characters_from_all_over_the_text(options, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("a" * 5000 + SEPARATOR + "é" * 5000, "utf-8")
    strings = Task(options | {"text": str(path), "num_strings": 10}).strings
    assert [len(s) for s in strings] == [200] * 10
    assert {s[0] for s in strings} == {"a", "é"}
