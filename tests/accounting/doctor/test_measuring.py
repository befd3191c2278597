"""What is measured has the right kind and meaning; how fast the machine is, is not tested."""

from types import SimpleNamespace

import pytest
import torch

from groundup.accounting.devices import DEVICES
from groundup.accounting.doctor import bandwidth, examine, matmul
from groundup.accounting.doctor.bandwidth import FULL, Level, Memory, Reading, levels, sweep, working_sets
from groundup.accounting.doctor.card import Peak, peaks
from groundup.accounting.doctor.matmul import MatmulRate, better, matmul_rates, measure, product, types_for, work
from groundup.accounting.doctor.system import Cache

CPU = torch.device("cpu")
SMALL = (4, 8, 16)


def test_work_counts_a_multiply_add_as_two():
    assert work((2, 3, 4)) == 48  # 2 x 4 results, each of 3 products and 3 sums
    assert work((0, 3, 4)) == 0


@pytest.mark.parametrize("dtype", types_for(CPU))
def test_every_type_multiplies_matrices_of_the_shape(dtype):
    found = product(CPU, dtype, (16, 32, 48))()
    assert isinstance(found, torch.Tensor) and found.shape == (16, 48)


def test_every_type_is_tried_with_every_shape_and_the_best_is_kept(monkeypatch):
    """A made-up machine: 10 GFLOP/s, twice that for squares of 2048; fp16 is 1,000 times slower, int8 fails."""
    asked = []

    def made_up(device, dtype, threads, shape, seconds):
        asked.append((dtype, threads, shape))
        rate = (2e10 if shape[0] == 2048 else 1e10) * threads
        if dtype == "int8":
            return MatmulRate(dtype, threads, 0.0, None, "no kernel")
        return MatmulRate(dtype, threads, rate / 1000 if dtype == "fp16" else 10 * rate, shape)

    monkeypatch.setattr(matmul, "measure", made_up)
    monkeypatch.setattr(matmul, "physical_cores", lambda: 4)
    found = {(rate.dtype, rate.threads): rate for rate in matmul_rates(CPU, 1.0)}
    assert set(found) == {("fp32", 1), ("fp32", 4), ("bf16", 1), ("bf16", 4)} | {
        (name, 4) for name in ("fp32 oneDNN", "fp16", "int8", "fp8")
    }
    assert found["bf16", 4] == MatmulRate("bf16", 4, 8e11, (2048, 2048, 2048))
    assert [shape for name, _, shape in asked if name == "fp16"] == [(512, 512, 512)]  # others would take minutes
    assert found["fp16", 4].shape == (512, 512, 512)
    assert len([name for name, _, _ in asked if name == "int8"]) == 1 and found["int8", 4].error == "no kernel"
    assert len([name for name, n, _ in asked if (name, n) == ("fp32", 4)]) == 3


def test_every_thread_count(monkeypatch):
    monkeypatch.setattr(matmul, "measure", lambda device, dtype, n, shape, seconds: MatmulRate(dtype, n, 1e12, shape))
    monkeypatch.setattr(matmul, "physical_cores", lambda: 4)
    assert len(matmul_rates(CPU, 1.0, every_thread_count=True)) == 2 * len(types_for(CPU))
    monkeypatch.setattr(matmul, "physical_cores", lambda: 1)
    assert len(matmul_rates(CPU, 1.0, every_thread_count=True)) == len(types_for(CPU))


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel for this type\nand a trace"), AttributeError("no kernel for this type")]
)
def test_a_type_that_does_not_work_says_why(error, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr("groundup.accounting.doctor.matmul.product", refuse)
    found = measure(CPU, "fp8", torch.get_num_threads(), SMALL, 0.01)
    assert found == MatmulRate("fp8", torch.get_num_threads(), 0.0, None, "no kernel for this type")


def test_precision_is_as_before(monkeypatch):
    before = torch.get_float32_matmul_precision()
    for dtype in ("fp32", "fp32 oneDNN"):
        found = measure(CPU, dtype, torch.get_num_threads(), SMALL, 0.001)
        assert found.shape == SMALL or found.error
        assert torch.get_float32_matmul_precision() == before


def test_the_faster_measurement_counts():
    slow, fast = MatmulRate("bf16", 2, 1.0), MatmulRate("bf16", 2, 2.0)
    assert better(None, slow) is slow
    assert better(slow, fast) is better(fast, slow) is fast


def test_levels_by_hand():
    """L1 of 40 bytes, L2 of 400: sets of 10 and 30 show L1, 100 and 300 L2, 800 memory; 350 and 500 are of no one."""
    caches = [Cache(1, "Data", 40, 2), Cache(1, "Instruction", 40, 2), Cache(2, "Unified", 400, 1)]
    rates = {10: 90.0, 30: 80.0, 38: 1.0, 100: 50.0, 300: 40.0, 350: 1.0, 500: 1.0, 800: 10.0, 1600: 8.0}
    readings = [Reading(size, rate) for size, rate in rates.items()]
    assert pytest.approx(0.75) == FULL
    assert levels(caches, readings) == [Level("L1", 40, 85.0), Level("L2", 400, 45.0), Level("memory", 0, 9.0)]


def test_levels_where_little_is_known():
    assert levels([], [Reading(10, 1.0)]) == [Level("memory", 0, None)]  # which level it was, nobody knows
    assert levels([Cache(1, "Data", 40, 1)], []) == [Level("L1", 40, None), Level("memory", 0, None)]


def test_cores_of_two_kinds_have_one_level_of_each_number():
    caches = [Cache(1, "Data", 32, 1), Cache(1, "Data", 48, 1), Cache(2, "Unified", 400, 1)]
    readings = [Reading(size, rate) for size, rate in {10: 90.0, 20: 80.0, 100: 50.0, 900: 9.0}.items()]
    assert levels(caches, readings) == [Level("L1", 32, 85.0), Level("L2", 400, 50.0), Level("memory", 0, 9.0)]


def test_without_numba_there_is_still_a_memory_rate(monkeypatch):
    def broken(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(bandwidth, "importlib", SimpleNamespace(import_module=broken))
    monkeypatch.setattr(bandwidth, "MEMORY_BYTES", 2**16)
    assert sweep(CPU, [2**13], 0.01) == []
    assert bandwidth.memory_bandwidth(CPU, 0.01).read > 0


def test_working_sets_leave_the_largest_cache():
    assert working_sets(0)[0] == 2**13 and working_sets(0)[-1] == 2**26
    assert working_sets(2**25)[-1] == 2**27
    assert working_sets(2**30)[-1] == 2**29
    assert all(b == 2 * a for a, b in zip(working_sets(0), working_sets(0)[1:], strict=False))


def test_a_sweep_reads_the_sets_that_were_asked_for():
    found = sweep(CPU, [2**13, 2**14], 0.01)
    assert [reading.bytes for reading in found] == [2**13, 2**14]
    assert all(reading.bandwidth > 0 for reading in found)


def test_a_share_is_never_above_one():
    assert Peak("bf16", 50.0, 100.0).share == 0.5 and not Peak("bf16", 50.0, 100.0).raised
    above = Peak("bf16", 150.0, 100.0)
    assert above.raised and above.assumed == 150.0 and above.share == 1.0
    unknown = Peak("bf16", 50.0, None)
    assert not unknown.raised and unknown.share == 1.0
    assert Peak("bf16", 0.0, None).share == 0.0


def test_peaks_are_the_best_of_everything_that_was_measured():
    h100 = DEVICES["h100"]
    rates = [MatmulRate("bf16", 1, 6e14), MatmulRate("bf16", 2, 7e14), MatmulRate("fp8", 1, 0.0, None, "none"),
             MatmulRate("int8", 1, 1e15)]  # fmt: skip
    found = {
        peak.what: peak for peak in peaks(rates, Memory(2e12, 1e12, 3e12), h100, {"bf16 x1": 8e14, "fp32 x1": 5e13})
    }
    assert set(found) == {"bf16", "int8", "fp32", "memory"}  # no fp8: it did not work
    assert found["bf16"] == Peak("bf16", 8e14, 989.5e12)
    assert found["fp32"].specified == 67e12 and found["int8"].specified is None
    assert found["memory"] == Peak("memory", 3e12, 3.35e12)


@pytest.mark.slow
def test_the_card_of_this_machine():
    threads = torch.get_num_threads()
    card = examine(CPU, 0.3, seen={"bf16 x1": 1e20})
    assert torch.get_num_threads() == threads
    assert {rate.dtype for rate in card.rates} == set(types_for(CPU))
    assert all(rate.flops > 0 or rate.error for rate in card.rates)
    assert min(card.memory.read, card.memory.write, card.memory.copy) > 0
    assert card.specified is None and all(peak.share == 1 for peak in card.peaks)
    assert next(peak for peak in card.peaks if peak.what == "bf16").measured == 1e20
    assert card.cores >= 1 and card.free_bytes >= 0 and [level.name for level in card.levels][-1] == "memory"
