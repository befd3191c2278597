"""What the stages write while training runs: nothing that a full disk or a killed session can spoil."""

import time

from groundup.build.folder import RunFolder


def test_a_disk_that_refuses_the_clock_does_not_stop_training(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", time.monotonic())

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundup.build.folder.write_json", refuse)
    folder.save_clock()
    folder.release()
