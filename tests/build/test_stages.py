"""What the stages write while training runs: nothing that a full disk or a killed session can spoil."""

import json
import time
from dataclasses import replace

import pytest
import torch

from groundup.build import build, resume
from groundup.build.folder import RunFolder
from groundup.build.stages import noise, pieces
from groundup.evaluation import Perplexity
from groundup.files import read_json
from groundup.model.pretrained import load_pretrained
from groundup.tensorfile import read_tensors
from tests.build.conftest import SMALL


def test_a_disk_that_refuses_the_clock_does_not_stop_training(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", time.monotonic())

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundup.build.folder.write_json", refuse)
    folder.save_clock()
    folder.release()


def rising():
    """A stand-in for `Session.score` whose scores rise after the second one, whatever the model."""
    scores = []

    def score(session, tokenizer, texts):
        scores.append(abs(len(scores) - 1.0) + 1.0)
        return Perplexity(scores[-1], 1.0, 10, 40, 1, "")

    return score


@pytest.fixture
def overtrained(stories, tmp_path, monkeypatch):
    """(run folder, step of the second score) of a build whose scores rose from then on."""
    monkeypatch.setattr("groundup.build.pretrain.Session.score", rising())
    build([str(stories)], replace(SMALL, chat=False), out=str(tmp_path / "run"), device="cpu")
    points = (tmp_path / "run" / "curve.jsonl").read_text().splitlines()
    return tmp_path / "run", json.loads(points[1])["step"]


def test_the_weights_that_scored_best_are_kept_and_said(overtrained, capsys):
    run, best = overtrained
    training = read_json(run / "training.json")
    assert training["kept_step"] == best < training["steps"]
    assert read_json(run / "result.json")["kept_step"] == best
    assert not (run / "best").exists()
    last = read_tensors(sorted((run / "checkpoints").iterdir())[-1] / "tensors-00001.safetensors")
    kept = load_pretrained(run).state_dict()
    assert not all(torch.equal(kept[name], last[f"model.{name}"]) for name in kept)
    assert "the weights from then are kept" in (run / "report.html").read_text()


def test_a_kill_before_the_stage_is_noted_loses_nothing(stories, tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("groundup.build.pretrain.Session.score", rising())
    with monkeypatch.context() as patch:
        patch.setattr("groundup.build.curve.Curve.clear", killed)
        build([str(stories)], replace(SMALL, chat=False), out=str(tmp_path / "run"), device="cpu")
    before = read_tensors(tmp_path / "run" / "model.safetensors")
    result = resume(tmp_path / "run")
    assert result["kept_step"] < result["steps"]
    after = read_tensors(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pieces_are_beginnings_of_many_texts():
    assert pieces(["a" * 9000, "b" * 9000, "c" * 10], 6000) == ["a" * 2000, "b" * 2000, "c" * 10]
    assert pieces([], 6000) == []
    assert sum(map(len, pieces(["x" * 100] * 1000, 6000))) == 6000


def test_less_text_is_more_noise():
    assert 0 < noise(["a" * 40_000]) < noise(["a" * 1_000]) < 0.05
