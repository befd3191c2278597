"""`groundup train`: what is asked for, one process and two, killed and gone on with."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from groundup.cli import main
from groundup.inference import Engine, SamplingParams
from groundup.tensorfile import read_tensors
from groundup.train.checkpoint import STATE, checkpoints

TINY = [
    "vocab_size=270", "num_layers=1", "d_model=16", "num_heads=1", "d_head=16", "context_length=16", "batch_size=4",
    "compile=false", "precision=fp32", "curve_points=1",
]  # fmt: skip
VERSE = "".join(f"To be, or not to be, that is question {i}:\n" for i in range(400))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE, encoding="utf-8")
    return str(path)


def train(text, out, *more):
    return ["train", text, *TINY, "--out", str(out), *more]


def weights(run):
    return read_tensors(Path(run) / "model.safetensors")


def same_bits(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def start(text, out, *more) -> subprocess.Popen:
    """As from a shell, since a launcher starts itself again as its ranks."""
    return subprocess.Popen([sys.executable, "-m", "groundup.cli", *train(text, out, *more)], stderr=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def test_one_process_trains_a_model_that_can_be_used(text, tmp_path, capsys):
    assert main(train(text, tmp_path / "run", "--tokens", "640", "--json")) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert result["steps"] == 10 and result["ranks"] == 1 and result["stopped_by"] == "steps"
    assert any(f"loss    {result['loss']:.4f} nats" in line for line in printed)
    (continued,) = Engine.load(tmp_path / "run").generate(["To be"], SamplingParams(max_tokens=3, temperature=0.0))
    assert 1 <= len(continued.tokens) <= 3


def test_a_dry_run_says_what_would_be(capsys):
    words = [
        "train",
        "--model",
        "llama",
        "num_layers=2",
        "batch_size=8",
        "--tokens",
        "4096",
        "--ranks",
        "4",
        "--dry-run",
    ]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr().out
    shown = json.loads(printed.splitlines()[-1])
    assert shown["ranks"] == 4 and shown["recipe"]["model"]["num_layers"] == 2 and shown["recipe"]["tokens"] == 4096
    assert "on 4 ranks of 2 rows" in printed and f"{shown['parameters']:,} parameters" in printed


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "lama"], "did you mean 'llama'"),
        (["num_layer=3"], "did you mean 'num_layers'"),
        (["--tokens", "99", "--minutes", "1"], "only one says when"),
        (["--ranks", "3"], "batch_size=16 cannot be shared by 3 ranks"),
        (["--plan", "shard=2"], "give optimizer=adamw"),
        (["--plan", "pipeline=2"], "no whole model"),
        (
            ["--plan", "data=2 zero=2"],
            "which Muon needs whole; give optimizer=adamw, or use zero=1; the groundup engine",
        ),
        (["--plan", "expert=2"], "the model has no experts"),
        (["--plan", "data=2", "--engine", "touch"], "did you mean 'torch'"),
        (["--engine", "torch"], "is for a --plan"),
        (["--plan", "data=2", "--ranks", "4"], "is for 2 ranks; here are 4"),
        (["--plan", "data=3"], "cannot be shared by 3 parts"),
        (["--plan", "dta=2"], "did you mean 'data'"),
        (["--plan", "recompute=true"], "one rank divides nothing"),
        (["--plan", "context=2", "compile=true"], "changes blocks"),
        (["--resume", "nowhere"], "not a run of groundup train"),
        (["--resume", "nowhere", "--seed", "3"], "leave out seed"),
    ],
)
def test_mistakes_are_answered_in_a_line(words, reason, capsys):
    assert main(["train", *words, "--dry-run"]) == 1
    assert reason in capsys.readouterr().err


def test_a_full_folder_is_not_written_over(text, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    assert main(train(text, tmp_path / "run")) == 1
    assert "not empty" in capsys.readouterr().err


def test_a_run_is_gone_on_with_by_another_number_of_ranks(text, tmp_path):
    """Stopped by a signal in two ranks, ended in one: the losses are those of a run that one rank made alone."""
    options = ("muon_rate=0.002", "adam_rate=0.001", "--tokens", "12800", "--checkpoint-every", "50")
    whole = main(train(text, tmp_path / "whole", *options))
    process = start(text, tmp_path / "run", *options, "--ranks", "2")
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert (whole, process.returncode) == (0, 130) and "go on with: groundup train --resume" in said
    assert not (tmp_path / "run" / "result.json").exists()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
         if "loss" in line]
        for name in ("whole", "run")
    ]  # fmt: skip
    assert len(losses[0]) == 20 and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_run_is_gone_on_with_under_another_plan(text, tmp_path):
    """Stopped by a signal while each of two ranks has half of all parameters, in torch's engine; ended in one."""
    options = ("optimizer=adamw", "adam_rate=0.001", "--tokens", "6400", "--checkpoint-every", "50")
    whole = main(train(text, tmp_path / "whole", *options))
    process = start(text, tmp_path / "run", *options, "--plan", "shard=2")
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert (whole, process.returncode) == (0, 130) and '--plan "shard=2"' in said
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
         if "loss" in line]
        for name in ("whole", "run")
    ]  # fmt: skip
    assert len(losses[0]) == 10 and losses[1] == pytest.approx(losses[0], rel=1e-3)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the ranks")
def test_killed_ranks_change_nothing(text, tmp_path):
    options = ("--tokens", "9600", "--checkpoint-every", "10", "--ranks", "2")
    undisturbed = start(text, tmp_path / "undisturbed", *options)
    assert undisturbed.wait(240) == 0
    process, chance = start(text, tmp_path / "run", *options), random.Random(0)
    saved = tmp_path / "run" / "checkpoints"
    kills = (30, 80)
    for wanted in kills:
        while process.poll() is None and not (saved / f"step-{wanted}").exists():
            time.sleep(0.01)
        os.kill(chance.choice(children(process.pid)), signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0 and said.count("was killed by SIGKILL") == len(kills)
    assert same_bits(tmp_path / "undisturbed", tmp_path / "run")


def agent(text, out, port: int) -> subprocess.Popen:
    """One node of two, as docs/multi-node.md starts it, except that neither of them keeps the store."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    command += ["--rdzv-conf", "is_host=false"]
    command += ["-m", "groundup.cli", *train(text, out, "--tokens", "640000", "--checkpoint-every", "7")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.mark.slow
def test_two_nodes_of_torchrun_save_on_sigterm_and_one_process_goes_on(text, tmp_path):
    # The system gives the store a port that is free.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    run, kept = tmp_path / "run", tmp_path / "run" / "checkpoints"
    agents = [agent(text, run, store.port) for _ in range(2)]
    try:
        deadline = time.monotonic() + 240
        while len(checkpoints(kept)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        for each in agents:
            each.send_signal(signal.SIGTERM)
        said = [each.communicate(timeout=240)[1] for each in agents]
    finally:
        for each in agents:
            each.kill()
    newest = checkpoints(kept)[0]
    step = json.loads((newest / STATE).read_text())["run"]["step"]
    assert all(each.returncode for each in agents), said
    assert 14 <= step < 10_000, "no whole checkpoint of a run that was under way"
    facts = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**facts, "tokens": (step + 5) * 64}))
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert json.loads((run / "result.json").read_text())["steps"] == step + 5
