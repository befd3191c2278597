"""The probe returns measurements of the right kind; how fast the machine is, is not tested."""

import torch

from groundup.accounting import describe_machine, probe


def test_probe_measures_and_chooses_the_fastest():
    threads = torch.get_num_threads()
    try:
        machine = probe(torch.device("cpu"), seconds=0.2)
    finally:
        torch.set_num_threads(threads)
    assert machine.peak_flops == max(machine.gemm_flops.values()) > 0
    assert machine.bandwidth > 0
    assert machine.precision in ("fp32", "bf16")
    assert f"{machine.precision} on {machine.threads} thread" in describe_machine(machine)
