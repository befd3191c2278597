"""`groundup profile`: what it takes, what it prints and what it writes."""

import json

import pytest
import torch

from groundup import cli, presets
from groundup.accounting import Machine, hardware
from groundup.model import Transformer
from groundup.model.pretrained import save_pretrained
from groundup.profiling import subject
from groundup.profiling.compare import fuse_norms

SMALL = ["d_model=32", "num_layers=1", "vocab_size=64", "context_length=16", "batch_size=2", "steps=1", "warmup=1",
         "--device", "cpu"]  # fmt: skip


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    machine = Machine("cpu", "one core", 1, "fp32", {"fp32 x1": 5e10, "bf16 x1": 1e11}, 1e10, 2**33)
    monkeypatch.setattr(hardware, "probe", lambda device, seconds: machine)


def call(capsys, *words):
    code = cli.main(["profile", *map(str, words)])
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1] if shown.out else ""
    return code, shown, json.loads(last) if last.startswith("{") else None


def test_a_training_step_prints_the_device_the_table_and_the_bottleneck(tmp_path, capsys):
    page = tmp_path / "roofline.html"
    memory = tmp_path / "phases.html"
    words = ["--json", "--trace", "--top", "3", "--out", tmp_path / "out", "--roofline", page, "--memory", memory]
    code, shown, result = call(capsys, *SMALL, *words)
    assert code == 0 and f"wrote       {page}" in shown.out and "norms" in page.read_text()
    for words in ("50 GFLOP/s", "ridge at 5.0 FLOPs per byte", "attention projections", "with the profiler",
                  "belongs to no group", "bottleneck  ", "what to do  ", "trace.json.gz"):  # fmt: skip
        assert words in shown.out
    assert [row["phase"] for row in result["phases"]] == ["steady", "forward", "backward", "update"]
    assert "beyond steady" in shown.out and "predicted" in memory.read_text()
    assert len(result["operations"]) == 3 and result["settings"]["phase"] == "train"
    assert sum(row["time_share"] for row in result["groups"]) == pytest.approx(1.0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"profile.json", "memory.json", "trace.json.gz"}
    assert json.loads((tmp_path / "out" / "profile.json").read_text())["bottleneck"] == result["bottleneck"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_inference_without_a_folder_named_goes_to_runs(phase, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, _ = call(capsys, *SMALL, "--phase", phase)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0 and {path.name for path in folder.iterdir()} == {"profile.json", "memory.json"}
    assert str(folder.name) in shown.out and "│ optimizer" not in shown.out


def test_a_published_model_at_less_depth(tmp_path, capsys):
    changes = ["num_layers=1", "vocab_size=64", "d_model=64", "batch_size=1", "context_length=8", "steps=1"]
    code, _, result = call(capsys, "smollm2-135m", *changes, "--out", tmp_path, "--json", "--device", "cpu")
    assert code == 0 and result["context_length"] == 8


def test_a_dotted_setting_is_no_model(tmp_path, capsys):
    code, _, result = call(capsys, *SMALL, "blocks.0.ffn.d_ff=8", "--out", tmp_path, "--json")
    row = next(row for row in result["groups"] if row["group"] == "feed-forward")
    products = 3 * 3 * 2 * (2 * 16) * 32 * 8  # forward and twice backward, three matrices, two rows of 16 tokens
    assert code == 0 and products < row["flops"] < 1.05 * products


def test_a_model_folder_and_its_shape_changed(tmp_path, capsys):
    config = presets.llama(vocab_size=64, d_model=32, num_layers=2, context_length=16)
    save_pretrained(Transformer(config), None, tmp_path / "model")
    common = ["batch_size=2", "steps=1", "--json", "--device", "cpu", "--out"]
    _, _, whole = call(capsys, tmp_path / "model", *common, tmp_path / "whole")
    _, _, less = call(capsys, tmp_path / "model", "num_layers=1", *common, tmp_path / "less")

    def flops(result):
        return next(row["flops"] for row in result["groups"] if row["group"] == "feed-forward")

    assert whole["context_length"] == 16 and flops(whole) == 2 * flops(less)


def test_norms_are_compared_in_one_table(capsys, monkeypatch):
    monkeypatch.setattr("groundup.profiling.compare.fuse_norms", lambda model: None)  # compiling takes half a minute
    code, shown, result = call(capsys, *SMALL, "--compare", "norm", "--json")
    assert code == 0 and "RMSNorm, fused" in shown.out
    rows = {row["variant"]: row for row in result["norms"]}
    assert list(rows) == ["LayerNorm", "RMSNorm", "LayerNorm, fused", "RMSNorm, fused"]
    # Seven operations per element against four; what the rest of a step costs is the same.
    assert rows["LayerNorm"]["flops_share"] == pytest.approx(7 / 4 * rows["RMSNorm"]["flops_share"], rel=0.05)
    assert rows["RMSNorm"]["gap"] == rows["RMSNorm"]["time_share"] / rows["RMSNorm"]["flops_share"]


def test_a_prediction_is_of_time_and_memory_of_a_model_that_is_never_made(capsys, monkeypatch):
    monkeypatch.setattr("groundup.profiling.subject.available_bytes", lambda device: 1)  # nothing would fit
    words = ["num_layers=5", "vocab_size=64", "d_model=32", "batch_size=2", "context_length=16", "threads=1"]
    code, shown, result = call(capsys, *words, "--predict", "--json")
    assert code == 0 and "5 rounds of 1 block" in shown.out and "(predicted)" in shown.out
    assert sorted(result["seconds_by_rounds"]) == ["1", "3"]
    assert result["tokens_per_second"] == pytest.approx(32 / result["seconds"])


@pytest.mark.parametrize(("words", "message"), [
    (["nosuchmodel"], "is not among the published ones"),
    (["smolm2-135m"], "did you mean 'smollm2-135m'"),
    (["num_layer=2"], "did you mean 'num_layers'"),
    (["d_model=wide"], "d_model=wide: expected a number"),
    (["batch_size=0"], "batch_size=0"),
    (["phase=train"], "give --phase"),
    (["gpt2", "gpt2-xl"], "one model at a time"),
    (["--compare", "norm", "--out", "x"], "writes no files: leave out --out"),
    (["--compare", "norm", "--trace"], "writes no files: leave out --trace"),
    (["--predict", "--out", "x"], "--predict prints a table and writes no files: leave out --out"),
    (["--predict", "--phase", "decode"], "--predict predicts a step of training: leave out --phase decode"),
    (["--predict", "--compare", "norm"], "leave out --compare"),
    (["--compare", "norm", "--roofline", "x.html"], "writes no files: leave out --roofline"),
    (["--roofline", "no/such/x.html"], "there is no folder no/such"),
    (["--memory", "no/such/x.html"], "--memory no/such/x.html: there is no folder no/such"),
    (["--memory", "x.html", "--phase", "decode"], "--memory is of a step of training"),
    (["--predict", "--memory", "x.html"], "writes no files: leave out --memory"),
])  # fmt: skip
def test_mistakes_are_answered_in_words(capsys, words, message):
    code, shown, _ = call(capsys, *words, "--device", "cpu")
    assert code == 1 and message in shown.err


def test_a_folder_in_use_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hardware, "probe", None)
    (tmp_path / "profile.json").write_text("{}")
    for out in (tmp_path, tmp_path / "profile.json"):
        code, shown, _ = call(capsys, *SMALL, "--out", out)
        assert code == 1 and "already holds something; choose another" in shown.err
    assert (tmp_path / "profile.json").read_text() == "{}"


def test_a_negative_number_of_operations_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["profile", "--top", "-1"])
    assert "expected 0 or more, not -1" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(capsys, monkeypatch):
    monkeypatch.setattr(subject, "available_bytes", lambda device: 2**30)
    code, shown, _ = call(capsys, "smollm2-135m", "--device", "cpu")
    assert code == 1 and "takes 2.0 GiB and 1.0 GiB are free" in shown.err and "num_layers=3" in shown.err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["profile", "--help"])
    shown = capsys.readouterr().out
    for name in ("batch_size=8", "context_length=null", "optimizer=", "threads=null", "--compare", "--trace"):
        assert name in shown


def test_dotted_settings_reach_into_the_model():
    assert subject.from_settings(["num_layers=2", "blocks.0.ffn.d_ff=99"]).blocks[0].ffn.d_ff == 99
    with pytest.raises(ValueError, match="no field 'dff'"):
        subject.from_settings(["blocks.0.ffn.dff=99"])


@pytest.mark.slow
def test_a_fused_norm_gives_the_same_gradient(unchecked):
    config = presets.llama(vocab_size=64, d_model=32, num_layers=1)
    tokens = torch.randint(64, (2, 8))
    gradients = []
    for fuse in (False, True):
        model = Transformer(config)
        if fuse:
            fuse_norms(model)
        model(tokens).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
