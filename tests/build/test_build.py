"""The main job from end to end, small: what it leaves, what it promises, and how it answers bad input."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from groundup import cli
from groundup.build import build, resume
from groundup.build.text import load_texts
from groundup.files import read_json
from groundup.model.pretrained import load_pretrained
from groundup.tokenizer import Tokenizer
from tests.build.conftest import SMALL, story

PROMISED = {"bits_per_byte", "baselines", "parameters", "tokens", "seconds", "predicted", "run"}


def test_result_holds_what_is_promised(finished):
    out, result = finished
    assert result.keys() >= PROMISED
    assert result == read_json(out / "result.json")
    assert result["baselines"].keys() == {"zstd_19", "unigram", "kneser_ney_5"}
    assert 0 < result["bits_per_byte"] < result["baselines"]["unigram"]
    assert result["predicted"].keys() >= {"total_seconds", "step_seconds", "peak_memory_bytes", "nats_per_token"}
    assert all(0 < result[side]["mfu"] <= 1 for side in ("predicted", "measured"))
    pair = result["measured"]["nats_per_token"], result["measured"]["bytes_per_token"]
    assert pair[0] / pair[1] / math.log(2) == pytest.approx(result["bits_per_byte"]), "both are of the held-out text"
    assert result["parameters"] == sum(p.numel() for p in load_pretrained(out).parameters())


def test_folder_is_a_hugging_face_model(finished):
    transformers = pytest.importorskip("transformers")
    out, _ = finished
    for folder in (out, out / "chat"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([tokenizer("The king of the city feared the winter.")["input_ids"]])
        assert ids.tolist()[0] == Tokenizer.load(folder).encode("The king of the city feared the winter.")
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits, load_pretrained(folder)(ids), atol=1e-4, rtol=1e-4)


def test_held_out_documents_are_whole_and_not_trained_on(finished, stories):
    out, _ = finished
    originals = {p.read_text() for p in stories.iterdir()}
    held_out = set(load_texts(out / "data" / "held_out.jsonl"))
    assert held_out
    assert held_out <= originals
    tokens = (out / "data" / "train").glob("*.bin")
    assert sum(f.stat().st_size for f in tokens) > 0
    validation = set(load_texts(out / "data" / "validation.jsonl"))
    assert validation
    assert validation <= originals - held_out
    manifest = read_json(out / "data" / "train" / "manifest.json")
    assert manifest["documents"] == len(originals) - len(held_out) - len(validation)


def test_other_commands_read_the_folder(finished, capsys):
    out, result = finished
    assert cli.main(["generate", str(out), "--prompt", "The king", "--max-tokens", "5", "--temperature", "0"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("The king")
    assert cli.main(["generate", str(out), "--prompt", "The king", "--max-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == first
    assert cli.main(["chat", str(out), "--message", "The river left the city.", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main(["eval", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-4)
    assert cli.main(["report", str(out)]) == 0
    assert "<html" in (out / "report.html").read_text()


def test_resuming_a_finished_run_changes_nothing(finished):
    out, result = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert resume(out) == result
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}


def test_dry_run_writes_nothing(stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = build([str(stories)], SMALL, dry_run=True, device="cpu")
    assert planned["plan"]["predicted"]["bits_per_byte"] > 0
    assert list(tmp_path.iterdir()) == []


def test_same_seed_gives_the_same_weights(stories, tmp_path, finished):
    out, _ = finished
    build([str(stories)], replace(SMALL, chat=False), out=str(tmp_path / "again"), device="cpu")
    ours, again = load_pretrained(out).state_dict(), load_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty"),
        ("binary.txt", bytes(range(256)) * 40, "binary"),
        ("tiny.txt", b"Too short to learn from.", "too little"),
        ("broken.jsonl", b"{not json\n" * 20, "broken.jsonl"),
        ("other.jsonl", b'{"body": "no text field"}\n' * 20, "body"),
        ("broken.jsonl.gz", b"\x1f\x8b\x08 not really", "broken.jsonl.gz"),
        ("odd.xyz", b"text", "xyz"),
    ],
)
def test_bad_files_are_answered_in_a_sentence(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "run"
    assert cli.main(["build", str(tmp_path / name), "--out", str(out), "--budget", "60s"]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_out_folder_with_content_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert cli.main(["build", "--out", str(tmp_path), "--budget", "60s"]) == 1
    assert "already holds something" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"


def test_one_kilobyte_with_invalid_bytes_makes_a_smaller_plan(tmp_path, capsys):
    text = story(1, 60).encode() + b"\xff\xfe broken \xf0\x28 bytes. " + story(2, 30).encode()
    (tmp_path / "small.txt").write_bytes(text)
    settings = replace(SMALL, vocab_size=5000)
    result = build([str(tmp_path / "small.txt")], settings, out=str(tmp_path / "run"), device="cpu")
    shown = capsys.readouterr().err
    assert "repaired" in shown
    assert "allows a vocabulary of" in shown
    assert "held out instead of whole documents" in shown
    assert result["bits_per_byte"] > 0


def run_build(arguments: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "groundup.cli", "build", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


WORDS = ["d_model=64", "num_layers=1", "vocab_size=300", "context_length=64", "batch_size=8", "compile=false"]


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_nothing_that_looks_whole(stories, tmp_path):
    arguments = [str(stories), "--budget", "60s", "--out", str(tmp_path / "run"), "max_epochs=1", *WORDS]
    with run_build(arguments, preexec_fn=limit_file_size) as process:
        _, shown = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "Traceback" not in shown
    assert "File too large" in shown
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def wait_for(path: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_build_goes_on_and_ends(stories, tmp_path, how):
    out = tmp_path / "run"
    with run_build([str(stories), "--budget", "60s", "--out", str(out), "max_epochs=400", *WORDS]) as process:
        wait_for(out, "curve.jsonl", process)
        os.kill(process.pid, how)
        _, shown = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"--resume {out}" in shown
        assert list((out / "checkpoints").glob("step-*"))
    assert not (out / "result.json").exists()
    with run_build(["--resume", str(out), "--json"]) as process:
        printed, shown = process.communicate(timeout=180)
    assert process.returncode == 0, shown
    result = json.loads(printed.splitlines()[-1])
    assert result.keys() >= PROMISED
    assert result["seconds"] < 90
