import importlib.util
import json
import math
import sys

import pytest
import torch

from groundup import bench
from groundup.accounting.hardware import Machine
from groundup.bench import kernel_calls
from groundup.bench import kernels as measured
from groundup.bench.kernel_calls import TORCH, contenders, liger, moved_bytes
from groundup.bench.kernels import SIZES, Case, row, summary
from groundup.bench.measure import Rates
from groundup.kernels import rmsnorm
from groundup.kernels.examples import EXAMPLES, Draw, Size, adamw_step, attention, outcome
from groundup.kernels.examples import rmsnorm as rmsnorm_example

CPU = torch.device("cpu")
TINY = SIZES["tiny"]["tiny"]
MACHINE = Machine("cpu", "a CPU", 1, "fp32", {"fp32 x1": 1e9}, bandwidth=1e9, memory_bytes=1)


def case(name="rmsnorm"):
    return Case(name, EXAMPLES[name][0], "tiny", TINY, torch.float32, CPU)


def test_bytes_by_hand():
    """x (3 x 8) and a gain of 8: both read and y written; then both, dy read and dx and dgain written, of 4 bytes."""
    size = Size(batch=1, seq=3, d_model=8)
    forward, backward = moved_bytes(rmsnorm, rmsnorm_example(Draw("cpu", torch.float32), size))
    assert forward == 4 * (24 + 8 + 24)
    assert backward == 4 * (24 + 8 + 24 + 24 + 8)


def test_adamw_reads_four_tensors_and_writes_three():
    size = Size(d_model=4, d_ff=2)
    forward, backward = moved_bytes(lambda *args, **kwargs: None, adamw_step(Draw("cpu", torch.float32), size))
    assert (forward, backward) == (7 * 4 * (8 + 4) + 2 * 4, 0)  # and two numbers of steps


def test_flops_of_attention_by_hand():
    """Two tokens see three pairs: a product with the key and one with the value of 8 channels, 2 FLOPs each."""
    made = attention(Draw("cpu", torch.float32), Size(batch=1, seq=2, heads=1, kv_heads=1, d_head=8))
    assert made.flops[0] == 3 * 8 * 2 * 2


@pytest.mark.parametrize("name", TORCH)
def test_torch_s_own_computes_the_same(name):
    """Else the comparison would be of different work."""
    entries = contenders(name, case(name).op, compiled=False, by_kernel=False)
    ours, theirs = (
        outcome(entries[who], EXAMPLES[name][0](Draw("cpu", torch.float32), TINY)) for who in ("ours", "torch")
    )
    for place in (0, -1):  # the first output and the last gradient; a loss of ours comes with its weight
        near = 0.02 * float(theirs[place].abs().max()) if name.startswith("int8") else 1e-4
        torch.testing.assert_close(ours[place], theirs[place], rtol=1e-4, atol=near)


def test_liger_is_found_in_the_environment_of_the_peers(tmp_path, monkeypatch):
    package = tmp_path / ".peers" / "lib" / "python3.11" / "site-packages" / "liger_kernel" / "transformers"
    package.mkdir(parents=True)
    (package / "functional.py").write_text("def liger_swiglu(gate, up):\n    return gate + up\n")
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(kernel_calls, "checkout", lambda: None)
    if importlib.util.find_spec("liger_kernel"):
        pytest.skip("Liger is installed, and taken from there")
    assert liger() == {}
    monkeypatch.setattr(kernel_calls, "checkout", lambda: tmp_path)
    entries = contenders("gated", case("gated").op, compiled=False, by_kernel=False)
    assert entries["liger"](torch.ones(1), torch.ones(1), "silu").item() == 2
    assert "liger" not in contenders("rotate", case("rotate").op, compiled=False, by_kernel=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "liger_kernel"]:
        del sys.modules[name]


def test_a_row_names_the_fastest_peer_and_its_share_of_the_roof():
    rates = {who: Rates((r, r, r)) for who, r in {"ours": 100.0, "torch": 50.0, "compiled": 80.0}.items()}
    made = row(case(), "forward", rates, {"liger": "liger: no GPU"}, moved=4_000_000, least=0.004)
    assert made["peer"] == "compiled" and made["ratio"] == pytest.approx(100 / 80)
    assert made["ours"] == pytest.approx(10.0) and made["roof"] == pytest.approx(0.4)
    assert (made["mb"], made["note"]) == (4.0, "liger: no GPU")


def test_without_ours_or_a_peer_there_is_no_ratio():
    assert row(case(), "forward", {"torch": Rates((1.0,))}, {"ours": "ours: it fell"}, 1, 1.0)["ratio"] is None
    assert row(case(), "forward", {"ours": Rates((1.0,))}, {}, 1, 1.0)["ratio"] is None


def test_the_ratio_is_the_geometric_mean_and_the_smallest_is_told():
    options = measured._arguments(["--device", "cpu", "--size", "tiny"])
    rows = [
        row(case(), what, {"ours": Rates((2.0,)), "torch": Rates((rate,))}, {}, 1, 1.0)
        for what, rate in (("forward", 1.0), ("both", 4.0))
    ]
    made = summary(rows, MACHINE, options, left_out=3)
    assert made.ratio == pytest.approx(math.sqrt(2.0 * 0.5))
    line = json.loads(made.line())
    assert line["details"]["smallest"]["what"] == "both" and line["details"]["left_out"] == 3
    assert {"name", "ours", "peer", "peer_name", "ratio", "unit", "device"} <= line.keys()
    assert summary([], MACHINE, options, 0).ratio is None


def test_a_contender_that_fails_leaves_the_others_their_turn():
    def fails(*args):
        raise RuntimeError("no such kernel\nand a long explanation")

    options = measured._arguments(["--device", "cpu", "--seconds", "0", "--turn-seconds", "0"])
    rates, failures = measured.race(case(), {"ours": rmsnorm, "torch": fails}, True, options)
    assert list(rates) == ["ours"] and failures == {"torch": "torch: no such kernel"}


def test_the_whole_benchmark_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(measured, "probe", lambda device, seconds: MACHINE)
    monkeypatch.setattr(kernel_calls, "liger", dict)  # it may be among the peers, and needs a GPU
    arguments = ["--size", "tiny", "--device", "cpu", "--no-compile", "--seconds", "0", "--turn-seconds", "0"]
    assert bench.run("kernels", [*arguments, "--ops", "rmsnorm", "attention", "adamw_step"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(r["case"], r["what"]) for r in line["rows"]] == [
        ("rmsnorm", "forward"), ("rmsnorm", "both"), ("attention", "forward"), ("attention", "both"),
        ("attention_in_a_window", "forward"), ("attention_in_a_window", "both"), ("adamw_step", "forward"),
    ]  # fmt: skip
    assert all(r["ours"] > 0 and r["note"] == "" for r in line["rows"])


def test_products_that_would_be_simulated_are_left_out(monkeypatch):
    names = [case.name for case in measured.cases(torch.device("meta"), torch.bfloat16, list(EXAMPLES), {"tiny": TINY})]
    assert "rmsnorm" in names and not any(name.startswith("int8") for name in names)
    monkeypatch.setattr(measured, "real", lambda *_: True)
    found = measured.cases(CPU, torch.bfloat16, ["int8_product"], {"tiny": TINY})
    assert [case.name for case in found] == ["int8_product"]


def test_what_was_left_out_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(measured, "probe", lambda device, seconds: MACHINE)
    assert bench.run("kernels", ["--size", "tiny", "--device", "cpu", "--limit", "-1"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["details"]["left_out"] > 10


def test_an_operation_that_does_not_fit_into_memory_leaves_the_others_theirs(monkeypatch, capsys):
    def run_case(case, machine, options):
        if case.name == "rmsnorm":
            raise torch.OutOfMemoryError("tried to allocate 100 GiB")
        return [row(case, "forward", {"ours": Rates((2.0,)), "torch": Rates((1.0,))}, {}, 1, 1.0)]

    monkeypatch.setattr(measured, "probe", lambda device, seconds: MACHINE)
    monkeypatch.setattr(measured, "run_case", run_case)
    assert bench.run("kernels", ["--size", "tiny", "--device", "cpu", "--ops", "rmsnorm", "gated"]) == 0
    output = capsys.readouterr().out
    line = json.loads(output.splitlines()[-1])
    assert "rmsnorm tiny: tried to allocate 100 GiB" in output
    assert ([r["case"] for r in line["rows"]], line["details"]["left_out"]) == (["gated"], 1)


def test_options_that_do_not_fit_are_refused(capsys):
    for wrong in (["--ops", "rmsnrm"], ["--size", "large", "--device", "cpu"]):
        with pytest.raises(SystemExit):
            measured._arguments(wrong)
    assert "cpu has model" in capsys.readouterr().err
