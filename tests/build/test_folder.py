"""The run folder: no overwriting, no two workers, a clock that survives interruptions."""

import os
import subprocess
import sys
import time

import pytest

from groundup.build.folder import RunFolder, fresh_path


def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ValueError, match="already holds something"):
        RunFolder.create(tmp_path, time.monotonic())


def test_clock_and_stages_survive(tmp_path):
    folder = RunFolder.create(tmp_path / "run", time.monotonic() - 5)
    (folder.path / "config.json").write_text("{}")
    with folder.stage("read", predicted_seconds=1.0):
        pass
    with pytest.raises(RuntimeError), folder.stage("train"):
        raise RuntimeError
    folder.release()
    again = RunFolder.open(folder.path, time.monotonic())
    assert again.done("read")
    assert not again.done("train")
    assert 5 <= again.elapsed < 60
    assert again.deadline(100) == pytest.approx(time.monotonic() + 95, abs=5)


HOLD = """
import sys, time
from pathlib import Path
from groundup.build.folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]), time.monotonic())
print("in", flush=True)
time.sleep(60)
"""


def test_a_second_live_process_is_kept_out(tmp_path):
    folder = RunFolder.create(tmp_path / "run", time.monotonic())
    (folder.path / "config.json").write_text("{}")
    folder.release()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match=f"process {other.pid}"):
            RunFolder.open(folder.path, time.monotonic())
        other.kill()
    again = RunFolder.open(folder.path, time.monotonic())
    assert (folder.path / "lock").read_text() == str(os.getpid())
    again.release()
    assert not (folder.path / "lock").exists()


def test_the_lock_of_a_dead_process_keeps_nobody_out_though_its_number_lives_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "lock").write_text(str(os.getppid()))
    RunFolder.open(tmp_path, time.monotonic()).release()


def test_two_claims_in_one_process_exclude_each_other(tmp_path):
    first = RunFolder.create(tmp_path / "run", time.monotonic())
    with pytest.raises(ValueError, match=f"process {os.getpid()}"):
        RunFolder.create(tmp_path / "run", time.monotonic())
    first.release()


def test_a_false_start_may_be_begun_again(tmp_path):
    for name in ("lock", "env.json", ".plan.json.abc.tmp"):
        (tmp_path / name).write_text("")
    RunFolder.create(tmp_path, time.monotonic()).release()


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out .*file"):
        RunFolder.check_free(tmp_path / place)


@pytest.mark.parametrize("state", ["{}", "[]", '{"elapsed_seconds": "x", "stages": []}',
                                   '{"elapsed_seconds": 1, "stages": [{}]}', "{"])  # fmt: skip
def test_a_damaged_state_is_a_sentence(tmp_path, state):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError, match=r"state\.json"):
        RunFolder.open(tmp_path, time.monotonic())


def test_not_a_run(tmp_path):
    with pytest.raises(ValueError, match="not the folder of a run"):
        RunFolder.open(tmp_path, time.monotonic())


def test_fresh_path_counts_up(tmp_path):
    for expected in ("x", "x-2", "x-3"):
        path = fresh_path("x", tmp_path)
        assert path.name == expected
        path.mkdir()
