import builtins
import io
import json
import math
import sys
import types

import pytest

import groundup.train.log
from groundup.train import MetricsLog, TensorBoard, WeightsAndBiases, read_metrics, replay
from groundup.train.progress import ProgressLine, format_line
from groundup.train.run import Run
from tests.train.small import tiny_run


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


class Collected:
    def __init__(self):
        self.records, self.closed = [], False

    def write(self, record):
        self.records.append(record)

    def close(self):
        self.closed = True


def test_sinks_get_the_same_records_and_a_broken_one_is_dropped(tmp_path, caplog):
    good = Collected()
    tiny_run(4, run_dir=tmp_path, log_every=2, sinks=[Broken(), good])
    assert good.records == read_metrics(tmp_path) and good.closed
    assert "Broken failed and is dropped" in caplog.text


@pytest.mark.parametrize(("sink", "module"), [(TensorBoard, "torch.utils.tensorboard"), (WeightsAndBiases, "wandb")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, sink, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="pip install"):
        sink(tmp_path)


def test_tensorboard_writes_its_files(tmp_path):
    pytest.importorskip("tensorboard")
    sink = TensorBoard(tmp_path)
    sink.write({"step": 1, "loss": 2.0, "epoch": None})
    sink.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_gets_every_number_at_its_step(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *arguments):
            calls.append(arguments)

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    sink = TensorBoard(tmp_path)
    sink.write({"step": 1, "loss": 2.0, "epoch": None})
    sink.close()
    assert calls == [str(tmp_path / "tensorboard"), ("loss", 2.0, 1), "closed"]


def test_a_run_that_is_there_is_shown_to_a_sink(tmp_path):
    tiny_run(4, run_dir=tmp_path, log_every=2)
    sink = Collected()
    assert replay(tmp_path, sink) == 2
    assert sink.records == read_metrics(tmp_path) and sink.closed
    with pytest.raises(RuntimeError, match="still down"):  # named by its user, so its failure is not hidden
        replay(tmp_path, Broken())
    with pytest.raises(ValueError, match="no metrics.jsonl"):
        replay(tmp_path / "elsewhere", sink)


def test_wandb_stays_offline(tmp_path, monkeypatch):
    calls = []

    class Fake:
        def init(self, **options):
            calls.append(options)
            return self

        def log(self, record, step):
            calls.append((step, record))

        def finish(self, quiet):
            calls.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Fake())
    sink = WeightsAndBiases(tmp_path)
    sink.write({"step": 3, "loss": 1.0, "epoch": None})
    sink.close()
    assert calls[0]["mode"] == "offline" and calls[1:] == [(3, {"loss": 1.0}), "finished"]


RECORD = {"step": 1200, "loss": 2.3141, "tokens_per_second": 41300.4, "mfu": 0.451, "skipped": 2}


def test_the_line_by_hand():
    line = "step 1,200  loss 2.314  41,300 tok/s  MFU 45%  2 skipped  4:05 left"
    assert format_line(RECORD, 245.9) == line
    assert format_line(RECORD | {"mfu": None, "skipped": 0}, None) == "step 1,200  loss 2.314  41,300 tok/s"
    assert format_line(RECORD, 3 * 3600.0 + 5).endswith("3:00:05 left")


def test_plain_lines_are_rare_and_a_terminal_gets_a_bar():
    stream = io.StringIO()
    line = ProgressLine(stream, seconds_between_lines=60.0)
    line.show(RECORD, 0.5, 10.0)
    line.show(RECORD, 0.6, 10.0)
    line.close()
    assert stream.getvalue().count("step") == 1

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    bar = ProgressLine(terminal)
    bar.show(RECORD, 0.5, 10.0)
    bar.close()
    assert "loss 2.314" in terminal.getvalue()


def test_measured_against_predicted():
    run = Run(step=4, losses=[4.0, 3.0, 2.0, 1.0], tokens=400, seconds=9.0, step_seconds=[5.0, 1.0, 2.0, 1.0])
    measured = run.measured()
    assert measured["step_seconds"] == 1.0 and measured["tokens_per_second"] == 100.0 and measured["loss"] == 2.5
    rows = run.against({"step_seconds": 0.8, "loss": 2.0})
    assert [row["error"] for row in rows] == pytest.approx([0.25, 0.25])
    with pytest.raises(ValueError, match="a run measures steps"):
        run.against({"energy": 1.0})
    assert Run().measured()["step_seconds"] is None
    assert json.loads(json.dumps(measured)) == measured
