"""What a run uses of its machine: rates by hand, files that are not there, and a thread that ends with the run."""

import doctest
import json
import mmap
import threading
import time
from pathlib import Path

import pytest
import torch

from groundup.train import resources
from groundup.train.resources import Counters, Monitor, count, levels, rates
from tests.train.small import Collected, batch, tiny_run

CPU = torch.device("cpu")


def records(folder):
    return [json.loads(line) for line in (folder / "resources.jsonl").read_text().splitlines()]


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "resources"]


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(resources).failed == 0


def test_rates_of_a_stretch_that_is_too_short_for_the_ticks():
    assert "machine_cpu_share" not in rates(Counters(0, 0, (5, 9), 0, 0), Counters(0.001, 0, (5, 9), 0, 0))
    assert rates(Counters(0, 0, None, None, 0), Counters(1, 1, (5, 9), 5, 3)) == {
        "process_cores": 1,
        "data_wait_share": 1.0,
    }


def test_a_process_that_computes_uses_a_core_and_one_that_sleeps_does_not():
    before, until = count(0.0), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    between = count(0.0)
    time.sleep(0.1)
    assert rates(before, between)["process_cores"] > 2 * rates(between, count(0.0))["process_cores"]


def test_memory_is_that_of_this_process():
    before = levels(CPU).get("resident_bytes")
    if before is None:
        pytest.skip("this system does not say what a process holds")
    size = 64 * 2**20
    with mmap.mmap(-1, size) as held:  # fresh pages, where an allocator might hand out what it kept
        for page in range(0, size, mmap.PAGESIZE):
            held[page] = 1
        assert levels(CPU)["resident_bytes"] - before == pytest.approx(size, rel=0.25)


def test_a_run_leaves_records_and_no_thread(tmp_path):
    _, _, run = tiny_run(20, run_dir=tmp_path, watch_seconds=1000.0)
    (record,) = records(tmp_path)  # shorter than one interval: one look, at the end
    assert record["step"] == run.step == 20
    assert record["process_cores"] > 0 and 0 <= record["data_wait_share"] <= 1
    assert watchers() == []
    tiny_run(5, run_dir=tmp_path / "unwatched", watch_seconds=None)
    assert (tmp_path / "unwatched").exists() and not (tmp_path / "unwatched" / "resources.jsonl").exists()


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    tiny_run(3, run_dir=tmp_path, checkpoint_every=3, watch_seconds=1000.0)
    tiny_run(5, run_dir=tmp_path, resume=True, watch_seconds=1000.0)
    assert [record["step"] for record in records(tmp_path)] == [3, 5]


def test_trackers_receive_the_latest_look_and_the_log_does_not(tmp_path):
    from groundup.train import read_metrics

    sink = Collected()
    tiny_run(None, source=(time.sleep(0.03) or batch(n) for n in range(10)), run_dir=tmp_path, sinks=[sink],
             watch_seconds=0.02)  # fmt: skip
    assert len(records(tmp_path)) > 2
    assert sink.records[-1]["process_cores"] >= 0
    assert all("process_cores" not in record for record in read_metrics(tmp_path))


def test_a_system_without_these_files_says_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "MACHINE_TIMES", tmp_path / "absent")
    monkeypatch.setattr(resources, "PROCESS_BYTES", Path(__file__))  # a file of another form
    monkeypatch.setattr(resources, "resident_bytes", lambda: 0)
    tiny_run(3, run_dir=tmp_path)
    (record,) = records(tmp_path)
    assert record.keys() & {"machine_cpu_share", "written_bytes", "resident_bytes"} == set()
    assert "process_cores" in record


def test_a_gpu_without_its_library_is_left_out(monkeypatch):
    def missing(*arguments):
        raise ModuleNotFoundError("pynvml does not seem to be installed or it can't be imported.")

    for name in ("utilization", "power_draw", "temperature"):
        monkeypatch.setattr(torch.cuda, name, missing)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    assert levels(torch.device("cuda")) == {**levels_of_cpu(), "gpu_memory_bytes": 70}
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 350_000)
    found = levels(torch.device("cuda"))
    assert found["gpu_share"] == 0.0 and found["gpu_watts"] == 350.0, "idle is a measurement, too"


def levels_of_cpu():
    return {name: pytest.approx(value, rel=0.2) for name, value in levels(CPU).items()}


@pytest.mark.parametrize("place", ["gone", "broken"])
def test_nothing_that_goes_wrong_here_reaches_the_run(place, tmp_path, monkeypatch, caplog):
    if place == "gone":
        (tmp_path / "resources.jsonl").mkdir()  # so that it cannot be written
    else:
        monkeypatch.setattr(resources, "rates", lambda before, after: {"x": float("nan")})
    _, _, run = tiny_run(3, run_dir=tmp_path)
    assert run.step == 3 and watchers() == []
    assert ("no longer watched" in caplog.text) is (place == "broken")


def test_a_run_that_fails_ends_its_thread(tmp_path):
    def breaks():
        yield batch(0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        tiny_run(None, source=breaks(), run_dir=tmp_path)
    assert watchers() == [] and len(records(tmp_path)) == 1


def test_looks_come_at_their_interval(tmp_path):
    enough, steps = threading.Event(), iter(range(10_000))

    def where():
        step = next(steps)
        if step == 4:
            enough.set()
        return step, 0.1 * step

    with Monitor(tmp_path / "resources.jsonl", CPU, where, seconds=0.01):
        assert enough.wait(60), "the fourth look comes although nobody asks"
    found = records(tmp_path)
    assert [record["step"] for record in found] == list(range(1, len(found) + 1))
    assert all(record["data_wait_share"] > 0 for record in found)
