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
    again = RunFolder.open(folder.path, time.monotonic())
    assert again.done("read")
    assert not again.done("train")
    assert 5 <= again.elapsed < 60
    assert again.deadline(100) == pytest.approx(time.monotonic() + 95, abs=5)


def test_a_second_live_process_is_kept_out(tmp_path):
    folder = RunFolder.create(tmp_path / "run", time.monotonic())
    (folder.path / "config.json").write_text("{}")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        (folder.path / "lock").write_text(str(other.pid))
        with pytest.raises(ValueError, match=f"process {other.pid}"):
            RunFolder.open(folder.path, time.monotonic())
        other.kill()
    RunFolder.open(folder.path, time.monotonic())
    assert (folder.path / "lock").read_text() == str(os.getpid())
    folder.release()
    assert not (folder.path / "lock").exists()


def test_not_a_run(tmp_path):
    with pytest.raises(ValueError, match="not the folder of a run"):
        RunFolder.open(tmp_path, time.monotonic())


def test_fresh_path_counts_up(tmp_path):
    for expected in ("x", "x-2", "x-3"):
        path = fresh_path("x", tmp_path)
        assert path.name == expected
        path.mkdir()
