"""TensorBoard and Weights & Biases, without their packages: what they are given and what they do with it."""

import sys
import types

import pytest

from groundup.train import TensorBoard, WeightsAndBiases, read_metrics, replay
from tests.train.small import Collected, tiny_run


class Broken(Collected):
    def write(self, record):
        raise RuntimeError("the tracker is down")


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
        def __init__(self, folder, **options):
            calls.append((folder, options))

        def add_scalar(self, *arguments):
            calls.append(arguments)

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    sink = TensorBoard(tmp_path)
    sink.write({"step": 1, "loss": 2.0, "epoch": None})
    sink.rewind(0)
    sink.close()
    folder = str(tmp_path / "tensorboard")
    assert calls == [(folder, {}), ("loss", 2.0, 1), "closed", (folder, {"purge_step": 1}), "closed"]


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


def test_a_run_that_is_there_is_shown_to_a_sink(tmp_path):
    tiny_run(4, run_dir=tmp_path, log_every=2)
    sink = Collected()
    assert replay(tmp_path, sink) == 2
    assert sink.records == read_metrics(tmp_path) and sink.closed
    broken = Broken()
    with pytest.raises(RuntimeError, match="tracker is down"):  # named by its user, so its failure is not hidden
        replay(tmp_path, broken)
    assert broken.closed
    with pytest.raises(ValueError, match="no metrics.jsonl"):
        replay(tmp_path / "elsewhere", sink)
