"""`groundup plan`."""

import argparse
import json

import pytest

from groundup import cli
from groundup.cli_plan import amount, tokens_of

KEYS = {"parameters", "tokens", "batch_tokens", "learning_rate", "seconds", "peak_bytes", "loss", "loss_unit"}


@pytest.fixture(autouse=True)
def no_card(tmp_path, monkeypatch):
    """A card that this machine's owner kept is not the tests'."""
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))


def call(capsys, *words):
    code = cli.main(["plan", *words])
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1] if shown.out else ""
    return code, shown, json.loads(last) if last.startswith("{") else None


def test_a_plan_for_devices_elsewhere(capsys):
    code, shown, plan = call(
        capsys, "--budget", "90m", "--device", "h100x8", "--text", "11GB", "--price", "2", "--json"
    )
    assert code == 0
    assert plan.keys() >= KEYS
    assert plan["seconds"] == pytest.approx(5400)
    assert plan["epochs"] == pytest.approx(plan["tokens"] / 2.75e9)
    assert plan["price"] == pytest.approx(24)
    assert len(plan["runners_up"]) == 2
    assert "a plan for 8 x H100 SXM" in shown.out
    assert "an MFU of 0.4 of 989.5 dense TFLOP/s" in shown.out


def test_a_kept_card_is_used_for_its_own_devices_and_said(tmp_path, capsys):
    flops = {"format": 1, "name": "NVIDIA H100 80GB HBM3", "count": 8, "node": "rack7", "date": "2026-01-02",
             "flops": {"bf16": 7e14}, "bandwidth": 2.5e12,
             "links": [{"what": "all-reduce", "between": "", "latency_seconds": 2e-5, "bandwidth": 1e9}]}  # fmt: skip
    (tmp_path / "doctor.json").write_text(json.dumps(flops))
    words = ("--params", "100M", "--tokens", "2B", "--json", "--device")
    _, shown, plan = call(capsys, *words, "h100x8")
    assert "measured: rack7, 2026-01-02" in shown.out and "an MFU of 0.4 of 700.0 measured TFLOP/s" in shown.out
    assert [row["used"] for row in plan["figures"]] == [7e14, 2.5e12, 1e9]
    assert [row["promised"] for row in plan["figures"]] == [989.5e12, 3.35e12, 450e9]
    assert "messages of a step" in shown.out
    _, shown, sheet = call(capsys, *words, "h100x8", "--card", "none")
    assert "messages of a step" not in shown.out and all("data sheet" in row["from"] for row in sheet["figures"])
    assert sheet["communication_seconds"] is None and sheet["seconds"] < plan["seconds"]
    _, shown, other = call(capsys, *words, "a100x8")
    assert "measured" not in shown.out.replace("assumed, not measured", "") and other["seconds"] > 0
    _, shown, _ = call(capsys, *words, "h100x16")
    assert "data sheets only: the card is of a machine with 8 x" in shown.out
    (tmp_path / "doctor.json").write_text("{}")
    code, shown, _ = call(capsys, *words, "h100x8")
    assert code == 0 and "is passed over" in shown.out
    assert cli.main(["plan", *words, "h100x8", "--card", str(tmp_path / "doctor.json")]) == 1
    assert 'expected an object with "format": 1' in capsys.readouterr().err


def test_flops_and_sizes(capsys):
    _, shown, plan = call(capsys, "--flops", "1e17", "--json")
    assert "no --device is given: planned for one H100" in shown.out
    assert plan["flops"] == pytest.approx(1e17)
    _, _, given = call(capsys, "--params", "100M", "--tokens", "2B", "--device", "a100", "--context", "512", "--vocab",
                       "1000", "--mfu", "0.3", "--json")  # fmt: skip
    assert given["tokens"] == 2e9
    assert given["model"] | {"context_length": 512, "vocab_size": 1000} == given["model"]


def test_tokens_per_parameter_are_a_result(capsys):
    _, shown, plan = call(capsys, "--flops", "1e19", "--json")
    assert round(plan["optimum"]["tokens_per_parameter"]) == 24
    assert plan["tokens_per_parameter"] == pytest.approx(plan["tokens"] / plan["parameters"])
    assert "tokens per parameter: a result for this budget" in shown.out
    assert plan["regime"] == "compute"
    _, shown, plan = call(capsys, "--flops", "1e19", "--text", "1B tokens", "--json")
    assert plan["regime"] == "data"
    assert "data runs out before compute" in shown.out


def test_served_tokens_choose_a_smaller_model_that_trains_longer(capsys):
    _, shown, plan = call(capsys, "--flops", "1e18", "--served-tokens", "1e12", "--json")
    (usual,) = plan["runners_up"]
    assert plan["parameters"] < usual["parameters"] and plan["tokens"] > usual["tokens"]
    assert plan["loss"] == pytest.approx(usual["loss"])
    life = plan["lifetime"]
    assert life["saved"] == pytest.approx(1 - life["chosen_device_seconds"] / life["usual_device_seconds"])
    assert f"over its life that saves {life['saved']:.1%}" in shown.out
    assert "loses" not in shown.out


def test_experts(capsys):
    _, shown, plan = call(capsys, "--flops", "1.93e20", "--device", "h100x8", "--experts", "1024", "--active", "16",
                          "--json")  # fmt: skip
    assert plan["granularity"] == 16 == plan["best_granularity"]["granularity"]
    assert plan["active"] == pytest.approx(1e9, rel=0.03)  # as the paper's table has it
    assert plan["loss"] < plan["dense"]["loss"]
    assert "1,024 experts, 16 active" in shown.out


def test_what_fits(capsys):
    code, shown, result = call(capsys, "--fit", "llama-2-7b", "--device", "h100x8", "--json")
    assert code == 0
    assert result["largest_parameters"] == 40e9
    assert result["bytes"]["weights in bf16"] == 2 * 6_738_415_616
    assert "40.0 B parameters" in shown.out


def test_the_devices(capsys):
    _, shown, table = call(capsys, "--devices", "--json")
    assert table["h100"]["bf16"] == 989.5e12
    _, shown, _ = call(capsys, "--devices")
    assert "NVIDIA H100 data sheet" in shown.out


@pytest.mark.slow
def test_a_plan_for_this_machine_is_the_builds(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"line {i} of a text about {i % 7} things" for i in range(4000)))
    code, shown, plan = call(capsys, str(text), "--budget", "60s", "d_model=64", "--json")
    assert code == 0
    assert plan.keys() >= KEYS
    assert plan["loss_unit"] == "bits per byte"
    assert plan["model"]["d_model"] == 64
    assert plan["batch_tokens"] == plan["batch_size"] * plan["model"]["context_length"]
    assert "expected" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "10m", "--device", "h99"], "device 'h99' is unknown"),
        (["--flops", "1e18", "--budget", "10m"], "give one of a time, FLOPs"),
        (["--params", "1e9", "--device", "h100"], "parameters together with tokens"),
        (["--flops", "1e18", "--text", "eleven"], "--text 'eleven': expected a size such as 11GB"),
        (["a.txt", "--device", "h100", "--budget", "1h"], "files are read for a plan of this machine only"),
        (["--mfu", "0.5"], "--mfu is for a plan with --device"),
        (["--fit", "llama-2-7x", "--device", "h100"], "'llama-2-7x' is not among the published ones"),
        (["--served-tokens", "1e12"], "--served-tokens is for a plan with --device"),
        (["--flops", "1e18", "--serving-mfu", "0.1"], "--serving-mfu is for a plan with --served-tokens"),
        (["--flops", "1e18", "--experts", "64"], "give both"),
        (["--flops", "1e18", "--experts", "64", "--active", "8"], "e.g. --experts 512 --active 8"),
        (["--flops", "1e18", "--experts", "64", "--active", "1", "--text", "1GB"], "knows no unique tokens"),
        (["--flops", "1e18", "--experts", "64", "--active", "1", "--served-tokens", "1e9"], "give one of them"),
        (["--params", "70B", "--tokens", "1B", "--device", "t4"], "do not fit into T4"),
    ],
)
def test_wrong_use(words, message, capsys):
    code, shown, _ = call(capsys, *words)
    assert code == 1
    assert message in shown.err


def test_amounts():
    assert [amount(text) for text in ("1e18", "1.4B", "200m", "15T", "3")] == [1e18, 1.4e9, 2e8, 1.5e13, 3]
    assert [tokens_of(text) for text in ("11GB", "8 MB", "3B tokens", "400 bytes")] == [2.75e9, 2e6, 3e9, 100]
    for text in ("", "x", "1e", "-3", "nan", "1.5Q"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no amount"):
            amount(text)
