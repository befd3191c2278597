"""Ranks of this machine: started, watched, ended with their launcher, and started again. Each in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groundup.parallel import launch

PROGRAMS = Path(__file__).with_name("rank_programs.py")
BARE = Path(__file__).with_name("bare_programs.py")


def command(name, folder, timeout=30.0):
    return [sys.executable, str(PROGRAMS), name, str(folder), str(timeout)]


def run(name, folder, timeout=30.0, ranks=2, **options):
    """(exit code, what was said)"""
    said: list[str] = []
    return launch(command(name, folder, timeout), ranks, say=said.append, **options), "\n".join(said)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


def within(seconds, true):
    give_up = time.monotonic() + seconds
    while not true() and time.monotonic() < give_up:
        time.sleep(0.05)
    return true()


def test_ranks_of_this_machine_find_each_other_and_nobody_else_does(tmp_path):
    assert run("sums", tmp_path, ranks=3) == (0, "")
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in range(3)] == ["6.0"] * 3
    heard = {line.split(":")[0] for rank in range(3) for line in (tmp_path / f"heard-{rank}").read_text().split()}
    if Path("/proc/net/tcp").exists():  # what Linux says of sockets
        assert heard == {"0100007F"}, "127.0.0.1 in hexadecimal, and nothing else: nobody outside can connect"


def test_the_first_error_is_shown_and_nothing_is_left(tmp_path):
    code, said = run("one_raises", tmp_path, restarts=0)
    assert code == 1
    assert said.startswith("rank 1 failed:\nTraceback") and "RuntimeError: the shoe is on the wrong foot" in said
    assert "onnection closed" not in said  # which is what rank 0 saw of it
    assert not any(is_alive(int((tmp_path / f"pid-{rank}").read_text())) for rank in range(2))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_does_not_come", ["rank 0 has waited in all_reduce for ", "(rank_programs.py:",
                               "rank 1 has not come: it is at rank_programs.py", "in evaluating", "stack of rank 1"]),
        ("one_is_stopped", ["rank 0 has waited in all_reduce for ", "rank 1 does not answer: stopped"]),
        ("another_way", ["rank 0 has waited in all_reduce", "rank 1 has waited in recv", "different collectives"]),
    ],
)  # fmt: skip
def test_a_hang_is_explained(name, words, tmp_path, capfd):
    code, said = run(name, tmp_path, timeout=1.0, restarts=0)
    printed = capfd.readouterr().err
    assert code == 1 and "ended after a hang" in said
    assert printed.count("hang: ") == 1
    assert [word for word in words if word not in printed] == [], printed


def test_a_death_starts_all_again(tmp_path):
    code, said = run("one_dies_at_first", tmp_path)
    assert code == 0 and "rank 1 was killed by SIGKILL" in said and said.endswith("from the last checkpoint")
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in range(2)] == ["3.0"] * 2


def test_progress_gives_new_restarts_and_no_progress_ends_them(tmp_path):
    def attempts() -> int:
        return len(list(tmp_path.glob("attempt-*")))

    said: list[str] = []
    program = [sys.executable, str(BARE), "counts_and_dies", str(tmp_path)]
    code = launch(program, 2, restarts=1, progress=lambda: min(attempts(), 2), say=said.append)
    assert code == 1 and "given up after 1 restarts without progress" in "\n".join(said)
    assert attempts() == 4  # two with progress, then one more, then the one that is allowed without


def test_a_signal_is_passed_on_once(tmp_path):
    program = (
        "import sys; from groundup.parallel import launch; "
        f"sys.exit(launch({command('waits_for_a_signal', tmp_path)!r}, 2))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert within(120, lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(120) == 130
    finally:
        launcher.kill()
    assert [(tmp_path / f"signal-{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2


def test_ranks_do_not_outlive_their_launcher(tmp_path):
    program = f"from groundup.parallel import launch; launch({command('waits_for_a_signal', tmp_path)!r}, 2)"
    launcher = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert within(120, lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    finally:
        launcher.kill()
    launcher.wait()
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    assert within(60, lambda: not any(map(is_alive, pids)))
