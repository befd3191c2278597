"""`groundup doctor`: one quick run for real, and what it prints of made-up machines."""

import json

import pytest
import torch

from groundup import cli, cli_doctor
from groundup.accounting import Machine, hardware
from groundup.accounting.devices import DEVICES
from groundup.accounting.doctor import load_card
from groundup.accounting.doctor.bandwidth import Level, Memory, Reading
from groundup.accounting.doctor.card import Card, peaks
from groundup.accounting.doctor.links import Link, Transfer, link
from groundup.accounting.doctor.matmul import MatmulRate
from groundup.accounting.doctor.system import Cache

MACHINE = Machine("cpu", "one core", 1, "bf16", {"fp32 x1": 5e10, "bf16 x1": 1e11}, 1e10, 2**33)


def made_card(specified=None, **changes):
    rates = (MatmulRate("bf16", 1, 9e14, (8, 8, 8)), MatmulRate("fp8", 1, 0.0, None, "no kernel"))
    memory = Memory(4e12, 3e12, 5e12)
    values = {
        "name": "made up", "device": "cuda:0", "cores": 132, "logical_processors": None,
        "caches": (Cache(2, "Unified", 50 * 2**20, 1),), "memory_bytes": 80 * 2**30, "free_bytes": 2**30,
        "rates": rates, "memory": memory, "readings": (Reading(2**20, 1e13), Reading(2**28, 4e12)),
        "levels": (Level("L2", 2**25, 1e13), Level("memory", 0, None)), "specified": specified,
        "peaks": tuple(peaks(rates, memory, specified, {})),
    }  # fmt: skip
    return Card(**(values | changes))


@pytest.fixture
def known(monkeypatch):
    """Nothing is measured."""
    monkeypatch.setattr(hardware, "probe", lambda device, seconds: MACHINE)
    monkeypatch.setattr("groundup.accounting.doctor.examine", lambda device, seconds, **known: made_card())
    monkeypatch.setattr("groundup.accounting.doctor.measure_links", lambda device, ranks: [
        link("all-reduce", f"{ranks} processes (gloo)", [Transfer(4096, 1e-4), Transfer(2**24, 0.01)], ranks),
        Link("peer copy", "GPUs", error="one GPU alone"),
    ])  # fmt: skip


def call(capsys, *words):
    code = cli.main(["doctor", *words])
    return code, capsys.readouterr().out


@pytest.mark.slow
def test_a_quick_run_for_real(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        code, out = call(capsys, "--seconds", "0.2", "--device", "cpu", "--folder", str(tmp_path), "--json")
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out)
    assert code == int(any(check["state"] == "broken" for check in found["checks"]))
    assert (
        found["gemm_flops"]
        and found["card"]["memory"]["copy"] > 0
        and "bandwidth" not in found
        and found["environment"]["python"]
    )
    assert found["links"] is None
    assert {peak["what"] for peak in found["card"]["peaks"]} >= {"fp32", "bf16", "memory"}
    assert all(0 < peak["share"] <= 1 for peak in found["card"]["peaks"])
    for name in ("fp32", "bf16"):  # no rate of the probe is above the peak
        peak = next(peak["assumed"] for peak in found["card"]["peaks"] if peak["what"] == name)
        assert peak >= max(rate for key, rate in found["gemm_flops"].items() if key.startswith(name))


def test_the_tables_say_what_is_there_and_what_is_not(known, tmp_path, capsys):
    code, out = call(capsys, "--device", "cpu", "--folder", str(tmp_path))
    for words in ("made up (cuda:0), 132 multiprocessors", "L2 unified 50 MiB", "900,000", "memory not seen",
                  "no data sheet of this device is known", "a build would choose: bf16 on 1 thread", "OMP_NUM_THREADS",
                  "not tried: torch.compile"):  # fmt: skip
        assert words in out
    assert code in (0, 1) and "Links" not in out


def test_links_are_measured_when_asked_for(known, tmp_path, capsys):
    _, out = call(capsys, "--device", "cpu", "--folder", str(tmp_path), "--links", "--ranks", "3")
    assert "3 processes (gloo)" in out and "one GPU alone" in out and "2.24" in out  # 4/3 of 16.8 MB in 10 ms
    _, out = call(capsys, "--device", "cpu", "--folder", str(tmp_path), "--links", "--json")
    first, second = json.loads(out)["links"]
    assert first["latency_seconds"] == 1e-4 and first["transfers"][1] == {"bytes": 2**24, "seconds": 0.01}
    assert second["bandwidth"] is None and second["error"] == "one GPU alone"


def test_the_card_is_kept_when_asked_for(known, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path / "cache"))
    call(capsys, "--device", "cpu", "--folder", str(tmp_path))
    assert not (tmp_path / "cache" / "doctor.json").exists()
    call(capsys, "--device", "cpu", "--folder", str(tmp_path), "--links", "--save")
    kept = load_card()
    assert (kept.name, kept.flops, kept.bandwidth, kept.count) == ("made up", {"bf16": 9e14}, 5e12, 1)
    assert [(way.what, way.latency_seconds) for way in kept.links] == [("all-reduce", 1e-4)]
    call(capsys, "--device", "cpu", "--folder", str(tmp_path), "--save", str(tmp_path / "mine.json"))
    assert load_card(tmp_path / "mine.json").links == ()


def test_beside_a_data_sheet(capsys):
    cli_doctor._print_rates(made_card(DEVICES["h100"]))
    out = capsys.readouterr().out
    assert "NVIDIA H100 data sheet" in out and "91%" in out  # 900 of 989.5
    assert "more than promised: the measured rate is the peak" in out  # 5 of 3.35 TB/s
    assert "fp8" not in out


def test_a_machine_that_tells_nothing_is_printed_all_the_same(capsys):
    bare = made_card(caches=(), readings=(), levels=(), rates=(), memory_bytes=0, free_bytes=0, cores=0, device="cpu")
    cli_doctor._print_card(bare)
    cli_doctor._print_rates(bare)
    cli_doctor._print_steps(bare)
    assert "caches      the system does not say" in capsys.readouterr().out


def test_something_broken_is_the_exit_code(known, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("groundup.accounting.doctor.check_system.write_speed", full_disk)
    code, out = call(capsys, "--device", "cpu", "--folder", str(tmp_path))
    assert code == 1 and "free some space there" in out and "1 broken" in out


def full_disk(folder):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--seconds", "0"], "--seconds 0: expected more than 0"), (["--seconds", "nan"], "--seconds nan: expected"),
     (["--ranks", "1"], "--ranks 1: a link has two ends"), (["--device", "abacus"], "device 'abacus'")],
)  # fmt: skip
def test_wrong_use_is_said_before_anything_is_measured(words, message, capsys):
    assert cli.main(["doctor", *words]) == 1
    assert message in capsys.readouterr().err
