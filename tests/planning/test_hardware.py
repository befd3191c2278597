"""Where figures are from: a card that was measured, else data sheets, and what is said of each."""

from dataclasses import replace

import pytest

from groundup.accounting.devices import cluster
from groundup.accounting.doctor.saved import SavedCard, SavedLink
from groundup.parallel.plan import ParallelPlan
from groundup.planning.hardware import Speed, hardware_of
from groundup.planning.links import Link
from tests.planning.small import hardware

LINKS = (
    SavedLink("all-reduce", "8 GPUs (nccl)", 7e-5, 3e11, ranks=8),
    SavedLink("send", "8 GPUs (nccl)", 4e-6, 2e11, ranks=8),
)
CARD = SavedCard("NVIDIA H100 80GB HBM3", 8, "rack7", "2026-01-02T00:00:00", {"bf16": 7e14}, 2.5e12, LINKS)


def test_what_was_measured_is_taken_and_said():
    target = cluster("h100x8").__class__(cluster("h100").device, 16, CARD.measured(cluster("h100").device))
    found = hardware_of(target, 0.5, CARD)
    assert found.speed.flops == 0.5 * 7e14 and found.memory_bandwidth == 2.5e12
    assert found.network.inside == Link(7e-5 / 14, 3e11) and found.network.per_machine == 8
    assert found.network.measured["send", 8] == Link(4e-6, 2e11)
    said = "\n".join(found.said)
    assert "measured: rack7, 2026-01-02" in said and "between machines: 50 GB/s and 10 us a message, assumed" in said


def test_without_a_card_the_data_sheet_is_named():
    found = hardware_of(cluster("h100x16"), 0.4, between=Link(1e-5, 1e11))
    assert found.network.inside.bandwidth == 450e9 and found.speed.flops == 0.4 * 989.5e12
    said = "\n".join(found.said)
    assert "by the data sheet, latency assumed" in said and "100 GB/s and 10 us a message, given" in said
    assert "not measured, taken as 1" in said
    assert "assumed for PCIe" in "\n".join(hardware_of(cluster("t4x4"), 0.4).said)


def test_a_narrow_product_has_the_share_of_the_nearest_that_was_measured():
    speed = Speed(100.0, 0.5, {2: 0.8, 8: 0.5})
    assert [speed.share(tensor) for tensor in (1, 2, 4, 8, 16)] == [1.0, 0.8, 0.8, 0.5, 0.5]
    assert speed.seconds(80.0, tensor=2, layers=3) == pytest.approx(1.5 + 1.0)


def test_ranks_that_share_cores_leave_them_to_each_other():
    machine, alone = replace(hardware(), cores=2), hardware()
    plans = [ParallelPlan.parse(text) for text in ("data=4", "pipeline=4", "pipeline=2", "data=2 pipeline=2")]
    assert [machine.busy_stages(plan) for plan in plans] == [1, 2, 2, 1]
    assert [alone.busy_stages(plan) for plan in plans] == [1, 4, 2, 2]
