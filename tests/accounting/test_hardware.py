"""The probe returns measurements of the right kind; how fast the machine is, is not tested."""

import torch

from groundup.accounting import describe_machine, probe
from groundup.accounting.hardware import FEWER_THREADS_MARGIN, choose


def test_probe_measures_and_chooses_the_fastest():
    threads = torch.get_num_threads()
    try:
        machine = probe(torch.device("cpu"), seconds=0.2)
    finally:
        torch.set_num_threads(threads)
    assert machine.peak_flops >= max(machine.gemm_flops.values()) / FEWER_THREADS_MARGIN > 0
    assert machine.peak_flops == machine.gemm_flops[f"{machine.precision} x{machine.threads}"]
    assert machine.bandwidth > 0
    assert machine.precision in ("fp32", "bf16")
    assert f"{machine.precision} on {machine.threads} thread" in describe_machine(machine)


def test_fewer_threads_need_a_clear_margin():
    assert choose({"bf16 x1": 9.0, "bf16 x2": 8.0}) == ("bf16", 2)
    assert choose({"bf16 x1": 9.0, "bf16 x2": 2.0}) == ("bf16", 1)
    assert choose({"bf16 x1": 1.0, "bf16 x2": 2.0, "fp32 x1": 1.0, "fp32 x2": 4.0}) == ("fp32", 2)
