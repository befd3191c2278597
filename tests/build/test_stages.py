"""What the stages write while training runs: nothing that a full disk or a killed session can spoil."""

import json
import time

from groundup.build import stages
from groundup.build.folder import RunFolder


def test_points_of_a_killed_session_do_not_stay_in_the_curve(tmp_path):
    path = tmp_path / "curve.jsonl"
    for step in (10, 20, 30, 20):
        stages._add_point(path, {"step": step})
    with open(path, "a") as f:
        f.write('{"step": 30, "bits')
    stages._add_point(path, {"step": 30})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]


def test_a_disk_that_refuses_the_clock_does_not_stop_training(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", time.monotonic())

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundup.build.folder.write_json", refuse)
    folder.save_clock()
    folder.release()
