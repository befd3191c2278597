import builtins
import io
import math

import pytest
import torch

import groundup.train.log
from groundup.train import MetricsLog, read_metrics
from tests.train.small import Collected, tiny_run


def steps(folder):
    return [r["step"] for r in read_metrics(folder)]


def test_records_round_trip_and_odd_numbers_become_null(tmp_path):
    log = MetricsLog(tmp_path)
    log.write({"step": 1, "loss": 0.1 + 0.2, "bad": math.nan, "text": "ü"})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.1 + 0.2, "bad": None, "text": "ü"}]
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.parametrize("tail", [b"", b'{"step": 9, "lo', b'{"step": 3}', b"\x00\x00", b"[]\n", b'{"step": null}\n'])
def test_a_torn_end_is_repaired(tmp_path, tail):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write({"step": step})
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(tail)
    again = MetricsLog(tmp_path, from_step=3)
    again.write({"step": 4, "again": True})
    assert steps(tmp_path) == [1, 2, 3, 4] and read_metrics(tmp_path)[-1]["again"]


def test_a_full_disk_delays_records_and_loses_none(tmp_path, monkeypatch, caplog):
    log = MetricsLog(tmp_path)
    log.write({"step": 1})

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:4].encode() if isinstance(data, str) else data[:4])
            raise OSError(28, "No space left on device")

    def full(path, mode="r", *args, **kwargs):
        return Full(path, "ab") if "a" in mode else builtins.open(path, mode, *args, **kwargs)

    monkeypatch.setattr(groundup.train.log, "open", full, raising=False)
    log.write({"step": 2})
    log.write({"step": 3})
    log.event(3, "skip", "also lost quietly")
    log.sync()
    assert steps(tmp_path) == [1] and (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert caplog.text.count("training goes on") == 1
    monkeypatch.undo()
    log.write({"step": 4})
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_training_goes_on_without_a_log(tmp_path, monkeypatch):
    def refuse(path, mode="r", *args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(groundup.train.log, "open", refuse, raising=False)
    _, _, run = tiny_run(4, run_dir=tmp_path, checkpoint_every=2)
    assert run.step == 4


class Broken:
    def write(self, record):
        raise RuntimeError("the tracker is down")

    def close(self):
        raise RuntimeError("still down")


def test_sinks_get_the_same_records_and_a_broken_one_is_dropped(tmp_path, caplog):
    good = Collected()
    tiny_run(4, run_dir=tmp_path, log_every=2, sinks=[Broken(), good])
    assert good.records == read_metrics(tmp_path) and good.closed
    assert "Broken failed and is dropped" in caplog.text


class Forgetful(Collected):
    """A sink that keeps what the file keeps."""

    def __init__(self):
        super().__init__()
        self.told = []

    def rewind(self, step):
        self.told.append(step)
        self.records = [record for record in self.records if record["step"] <= step]


def test_a_sink_that_can_forget_is_told_of_a_rewind(tmp_path):
    plain, forgetful = Collected(), Forgetful()
    log = MetricsLog(tmp_path, sinks=[plain, forgetful])
    for step in (1, 2, 3):
        log.write({"step": step})
    log.rewind(1)
    log.write({"step": 2, "again": True})
    assert forgetful.told == [0, 1] and forgetful.records == read_metrics(tmp_path)
    assert [record["step"] for record in plain.records] == [1, 2, 3, 2]


def test_a_resumed_run_tells_where_it_goes_on(tmp_path):
    tiny_run(4, run_dir=tmp_path)
    forgetful = Forgetful()
    tiny_run(6, run_dir=tmp_path, resume=True, sinks=[forgetful])
    assert forgetful.told == [4] and [record["step"] for record in forgetful.records] == [5, 6]


def test_going_back_to_a_checkpoint_reaches_the_sinks(tmp_path):
    """A weight breaks after step 7: the run goes back to step 5, and steps 6 and 7 are logged again."""
    struck, forgetful = [], Forgetful()

    def strike(step, model, run):
        if step == 7 and not struck:
            struck.append(step)
            with torch.no_grad():
                model.embed.weight[0, 0] = math.nan

    tiny_run(10, run_dir=tmp_path, checkpoint_every=5, every={1: strike}, sinks=[forgetful])
    assert struck == [7] and forgetful.told == [0, 5]
    assert forgetful.records == read_metrics(tmp_path) and steps(tmp_path) == list(range(1, 11))


def test_a_sink_that_fails_to_forget_is_dropped(tmp_path, caplog):
    class Stubborn(Collected):
        def rewind(self, step):
            raise RuntimeError("what is sent is sent")

    stubborn, forgetful = Stubborn(), Forgetful()
    log = MetricsLog(None, sinks=[stubborn, forgetful])
    log.write({"step": 1})
    assert stubborn.records == [] and forgetful.records == [{"step": 1}]
    assert "Stubborn failed and is dropped: what is sent is sent" in caplog.text
