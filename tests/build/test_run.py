"""The order of a build: what is asked of a folder before going on, and how a stop from outside is answered."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from groundup import cli
from groundup.build import resume, run
from groundup.files import read_json, write_json

ORDER = ["plan", "tokenizer", "baselines", "pretrain", "evaluate", "chat", "samples", "report"]


@pytest.fixture
def stopped(finished, tmp_path):
    """Makes a copy of a finished run that stopped after a stage."""

    def make(stage):
        folder = tmp_path / "run"
        shutil.copytree(finished[0], folder)
        state = read_json(folder / "state.json")
        assert [done["name"] for done in state["stages"]] == ORDER
        kept = state["stages"][: ORDER.index(stage) + 1]
        write_json(folder / "state.json", {**state, "elapsed_seconds": 20.0, "stages": kept})
        return folder

    return make


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def remove(path):
    path.unlink()


SHARD = "data/train/shard-00000.bin"


@pytest.mark.parametrize(
    ("stage", "file", "damage", "what"),
    [
        ("tokenizer", "tokenizer.json", cut, "not valid JSON"),
        ("pretrain", "tokenizer.json", remove, "missing"),
        ("tokenizer", SHARD, remove, "missing from the shard set"),
        ("tokenizer", SHARD, cut, "written were"),
        ("baselines", SHARD, flip, "SHA-256 differs"),
        ("tokenizer", "data/train/manifest.json", cut, "not valid JSON"),
        ("tokenizer", "data/held_out.jsonl", remove, "missing"),
        ("baselines", "baselines.json", remove, "missing"),
        ("baselines", "baselines.json", cut, "not valid JSON"),
        ("pretrain", "model.safetensors", remove, "missing"),
        ("pretrain", "training.json", cut, "not valid JSON"),
        ("evaluate", "evaluation.json", remove, "missing"),
        ("chat", "chat/model.safetensors", remove, "no model.safetensors"),
        ("chat", "chat/model.safetensors", cut, "the file holds"),
        ("chat", "chat/config.json", cut, "not valid JSON"),
        ("report", "result.json", cut, "not valid JSON"),
    ],
)
def test_what_finished_stages_left_is_asked_for_in_one_line(stopped, capsys, stage, file, damage, what):
    folder = stopped(stage)
    damage(folder / file)
    assert cli.main(["build", "--resume", str(folder)]) == 1
    shown = capsys.readouterr().err
    (line,) = (line for line in shown.splitlines() if "error" in line)
    assert "Traceback" not in shown
    assert line.startswith(f"groundup build: error: {folder / file}") or "chat: no model.safetensors" in line
    assert what in line and "restore" in line
    assert not (folder / "lock").exists()


def test_weights_that_are_not_those_of_training_are_refused(stopped):
    folder = stopped("pretrain")
    cut(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: changed or damaged since training"):
        resume(folder)


def test_files_that_nobody_needs_any_more_are_not_asked_for(stopped, finished):
    folder = stopped("samples")
    shutil.rmtree(folder / "checkpoints")
    remove(folder / "curve.jsonl")
    assert resume(folder)["bits_per_byte"] == finished[1]["bits_per_byte"]


def test_inputs_are_known_by_their_hash(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("as it was")
    manifest = {"hashes": {str(text): run.sha256(text)}}
    run._check_inputs(manifest)
    for change in (lambda: text.write_text("as it is"), text.unlink):
        change()
        with pytest.raises(ValueError, match=r"text\.txt: it changed since this run began; put it back"):
            run._check_inputs(manifest)


def test_the_last_words_say_what_came_out_and_what_to_do_with_it(capsys):
    run.conclude({"bits_per_byte": 1.5, "seconds": 61.2, "baselines": {"zstd_19": 2.25}, "run": "runs/x"})
    done, report, attempt = capsys.readouterr().err.splitlines()
    assert done == "done       1.500 bits per byte in 61 s (zstd_19 2.250)"
    assert report.endswith(os.path.join("runs/x", "report.html")) and attempt.endswith("groundup chat runs/x")


# ---- a stop from outside ----


@pytest.fixture
def sigterm():
    """The command line diverts SIGTERM for its process; a test's process wants it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_answered_like_ctrl_c(monkeypatch, capsys, sigterm):
    """Outside of training, where nobody else listens: without its own handler the process would be gone."""

    def strike(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("nothing follows a signal")

    monkeypatch.setattr("groundup.build.build", strike)
    assert cli.main(["build", "--budget", "60s"]) == 130
    assert "groundup build: interrupted" in capsys.readouterr().err


WORDS = ["d_model=64", "num_layers=1", "vocab_size=300", "context_length=64", "batch_size=8", "compile=false"]


def run_build(arguments):
    command = [sys.executable, "-m", "groundup.cli", "build", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def terminate_at(file, process):
    """SIGTERM as soon as the build has written `file`; what the process says and how it ends."""
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    return process.returncode, shown


@pytest.mark.slow
@pytest.mark.parametrize(("file", "epochs"), [("data/held_out.jsonl", 2), ("curve.jsonl", 15)])
def test_a_terminated_build_says_how_to_go_on_and_does(stories, tmp_path, file, epochs):
    """The one file is there when the vocabulary is, the other after an eighth of the training."""
    out = tmp_path / "run"
    with run_build([str(stories), "--budget", "60s", "--out", str(out), f"max_epochs={epochs}", *WORDS]) as process:
        code, shown = terminate_at(out / file, process)
    assert code == 130, shown
    assert f"stopped; go on with: groundup build --resume {out}" in shown and "Traceback" not in shown
    assert not (out / "result.json").exists() and not (out / "lock").exists()
    before = read_json(out / "state.json")
    assert file != "curve.jsonl" or before["unfinished"]["pretrain"] > 0

    with run_build(["--resume", str(out), "--json"]) as process:
        printed, shown = process.communicate(timeout=180)
    assert process.returncode == 0, shown
    result = json.loads(printed.splitlines()[-1])
    seconds = {stage["name"]: stage["seconds"] for stage in result["stages"]}
    assert all(seconds[name] > spent for name, spent in before["unfinished"].items())
    assert sum(seconds.values()) <= result["seconds"] < 80
