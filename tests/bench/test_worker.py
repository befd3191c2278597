"""The protocol between a benchmark and the process that it measures."""

import sys

import pytest

from groundup.bench.worker import Worker, WorkerFailed


def program(tmp_path, body: str):
    path = tmp_path / "measured.py"
    path.write_text(body, "utf-8")
    return path


def test_facts_then_turns(tmp_path):
    path = program(
        tmp_path,
        "total = 0\n"
        "def run(k):\n    global total\n    total += k\n    return {'total': total}\n"
        "def prepare(options):\n    print('noise on stdout')\n    return {'name': options['name']}, run\n",
    )
    with Worker(sys.executable, path, {"name": "x"}) as worker:
        assert worker.facts["name"] == "x"
        assert [worker.run(k)["total"] for k in (2, 3)] == [2, 5]
        assert worker.run(1)["seconds"] >= 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def prepare(options):\n    raise ValueError('no such shape')\n", "ValueError: no such shape"),
        ("import sys\nsys.exit('gone')\n", "ended with code 1: gone"),
        ("def prepare(options):\n    return {}, None\n", "TypeError"),
        ("import no_such_package_at_all\n", "ModuleNotFoundError"),
    ],
)
def test_a_failure_is_told_in_one_line(tmp_path, body, reason):
    with (
        pytest.raises(WorkerFailed, match=reason),
        Worker(sys.executable, program(tmp_path, body), {}) as worker,
    ):
        worker.run(1)


def test_a_silent_program_is_killed(tmp_path):
    path = program(tmp_path, "import time\ndef prepare(options):\n    time.sleep(600)\n")
    with pytest.raises(WorkerFailed, match="killed after"):
        Worker(sys.executable, path, {}, timeout=0.5)


def test_a_program_that_died_between_turns(tmp_path):
    body = "import os\ndef prepare(options):\n    return {}, lambda k: os._exit(3)\n"
    with Worker(sys.executable, program(tmp_path, body), {}) as worker:
        with pytest.raises(WorkerFailed, match="ended with code 3"):
            worker.run(1)
        with pytest.raises(WorkerFailed, match="ended with code 3"):
            worker.run(1)
