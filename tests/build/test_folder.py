"""The run folder: no overwriting, no two workers, a clock that survives interruptions."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time

import pytest

from groundup.build.folder import LEFT_BY, RunFolder
from groundup.files import read_json, write_json


def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ValueError, match="already holds something"):
        RunFolder.create(tmp_path, time.monotonic())


def test_clock_and_stages_survive(tmp_path):
    folder = RunFolder.create(tmp_path / "run", time.monotonic() - 5)
    (folder.path / "config.json").write_text("{}")
    write_json(folder.path / "plan.json", {"plan": {}})
    with folder.stage("plan", predicted_seconds=1.0):
        pass
    with pytest.raises(RuntimeError), folder.stage("train"):
        raise RuntimeError
    folder.release()
    again = RunFolder.open(folder.path, time.monotonic())
    assert again.done("plan")
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


class Session:
    """A folder whose process began some seconds ago, and can be sent into the future."""

    def __init__(self, path, opened=True):
        make = RunFolder.open if opened else RunFolder.create
        self.folder = make(path, time.monotonic())
        (path / "config.json").write_text("{}")

    def wait(self, seconds):
        self.folder._started -= seconds

    def kill(self):
        """What is left is what was saved; the system lets go of the lock."""
        assert self.folder._claim is not None
        self.folder._claim.close()


def seconds_of(folder, name):
    (found,) = (stage["seconds"] for stage in folder.stages if stage["name"] == name)
    return found


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_a_stages_seconds_are_those_of_all_sessions(tmp_path, error):
    """Ten seconds before Ctrl-C, an error or a stop that was asked for, and seven after it; two in no stage."""
    first = Session(tmp_path / "run", opened=False)
    first.wait(2)
    with contextlib.suppress(error or ZeroDivisionError), first.folder.stage("train", 99.0) as outcome:
        first.wait(10)
        if error:
            raise error
        outcome.finished = False
    assert not first.folder.done("train")
    first.folder.release()

    second = Session(tmp_path / "run")
    with second.folder.stage("train", 99.0):
        second.wait(7)
    assert seconds_of(second.folder, "train") == pytest.approx(17, abs=0.5)
    assert second.folder.elapsed == pytest.approx(19, abs=0.5)
    assert read_json(tmp_path / "run" / "state.json")["unfinished"] == {}
    with second.folder.stage("score"):
        second.wait(4)
    assert seconds_of(second.folder, "score") == pytest.approx(4, abs=0.5)
    second.folder.release()


def test_a_killed_session_counts_up_to_its_last_save(tmp_path):
    path = tmp_path / "run"
    first = Session(path, opened=False)
    with first.folder.stage("train"):
        first.wait(10)
        first.folder.save_clock()
        state = (path / "state.json").read_text()
        first.wait(100)
    (path / "state.json").write_text(state)  # the hundred seconds were never saved
    first.kill()

    second = Session(path)
    assert not second.folder.done("train") and second.folder.elapsed == pytest.approx(10, abs=0.5)
    with second.folder.stage("train"):
        second.wait(5)
        second.folder.save_clock()
        assert second.folder.unfinished()["train"] == pytest.approx(15, abs=0.5)
        second.folder.save_clock()  # saving twice counts nothing twice
    assert seconds_of(second.folder, "train") == pytest.approx(15, abs=0.5)


def test_a_folder_of_an_older_version_goes_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_json(tmp_path / "state.json", {"elapsed_seconds": 40.0, "stages": [{"name": "read", "seconds": 3.0}]})
    session = Session(tmp_path)
    assert session.folder.done("read") and session.folder.unfinished() == {}
    with session.folder.stage("train"):
        session.wait(2)
    assert seconds_of(session.folder, "train") == pytest.approx(2, abs=0.5)
    assert session.folder.elapsed == pytest.approx(42, abs=0.5)


# ---- what finished stages have left ----


@pytest.fixture
def left(tmp_path):
    """A folder in which every stage is done, with as little in its files as they are known by."""
    for file, key in (item for files in LEFT_BY.values() for item in files.items()):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps({key: 1}) if key else "")
    (tmp_path / "config.json").write_text("{}")
    keep_stages(tmp_path, list(LEFT_BY))
    return tmp_path


def keep_stages(path, names):
    write_json(path / "state.json", {"elapsed_seconds": 1.0, "stages": [{"name": name} for name in names]})


UNFINISHED = [name for name in LEFT_BY if name != "report"]
FILES = [(stage, file, key) for stage, files in LEFT_BY.items() for file, key in files.items()]


@pytest.mark.parametrize(("stage", "file", "key"), FILES)
def test_a_file_of_a_finished_stage_is_asked_for_by_name(left, stage, file, key):
    stages = list(LEFT_BY) if stage == "report" else UNFINISHED
    keep_stages(left, stages)
    RunFolder.open(left, time.monotonic()).release()
    (left / file).unlink()
    for _ in range(2):  # the folder is let go of, too
        with pytest.raises(ValueError, match=rf"{re.escape(file)}: missing; restore it, or begin a new run$"):
            RunFolder.open(left, time.monotonic())
    assert not (left / "lock").exists()
    keep_stages(left, stages[: stages.index(stage)])  # nobody asks for what is still to be made
    RunFolder.open(left, time.monotonic()).release()


@pytest.mark.parametrize("content", ["{", "[]", "{}", "3", '"x"', "\xff"])
@pytest.mark.parametrize("file", ["tokenizer.json", "baselines.json", "training.json"])
def test_a_damaged_file_of_a_finished_stage_is_named(left, file, content):
    keep_stages(left, UNFINISHED)
    (left / file).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"{file}: (not valid JSON|damaged, it has no).*restore it, or begin"):
        RunFolder.open(left, time.monotonic())


def test_a_finished_run_needs_its_result_only(left):
    for file in left.rglob("*"):
        if file.is_file() and file.name not in ("config.json", "state.json", "result.json"):
            file.unlink()
    RunFolder.open(left, time.monotonic()).release()


def test_what_is_read_later_is_missed_in_a_sentence(tmp_path):
    folder = RunFolder(tmp_path, time.monotonic())
    with pytest.raises(ValueError, match=r"x\.json: missing; restore it"):
        folder.read("x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON .*; restore it"):
        folder.read("x.json")
