"""What a process runs on: named devices are had or refused, switches of torch's global state do what they say."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from groundup import device


def test_a_named_device_is_taken_and_an_absent_one_refused(monkeypatch):
    monkeypatch.setenv("GROUNDUP_DEVICE", "cpu")
    assert device.default_device() == torch.device("cpu")
    monkeypatch.setenv("GROUNDUP_DEVICE", "gpu")
    with pytest.raises(ValueError, match="device 'gpu': expected cpu, mps, cuda or cuda:N"):
        device.default_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that should be absent")
def test_no_silent_fallback_from_cuda():
    with pytest.raises(ValueError, match="device 'cuda:1': this torch .* sees no CUDA GPU; use cpu"):
        device.require_device("cuda:1")


def test_ranks_are_those_that_torchrun_gives(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (device.rank(), device.world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (device.rank(), device.world_size()) == (2, 4)


def test_a_seed_repeats_the_global_draws():
    device.set_seed(7)
    first = torch.rand(3)
    device.set_seed(7)
    assert torch.equal(torch.rand(3), first)
    assert not torch.equal(torch.rand(3), first)


def test_the_deterministic_switch_refuses_what_has_no_deterministic_form(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        device.deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    finally:
        device.deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_peak_memory_is_at_least_what_is_held():
    cpu = torch.device("cpu")
    device.reset_peak_memory(cpu)
    held = torch.ones(8_000_000)
    peak, now = device.peak_memory_bytes(cpu), device.resident_bytes()
    if not (peak and now):
        pytest.skip("this system does not say")
    assert 0.8 * held.nbytes < 0.9 * now < peak


def test_releasing_memory_needs_no_glibc(monkeypatch):
    for error in (OSError, AttributeError, TypeError):

        def refuse(name, error=error):
            raise error("no C library without a name")

        monkeypatch.setattr(ctypes, "CDLL", refuse)
        device.release_memory()


def test_the_environment_is_enough_to_repeat_a_run():
    said = device.environment()
    assert said["versions"]["torch"] == torch.__version__
    assert said["threads"] == torch.get_num_threads()
    assert said["cores"] == device.physical_cores() >= 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep freed memory")
def test_freed_memory_is_used_again_without_page_faults():
    program = """
import ctypes, resource
from groundup.device import keep_memory
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def faults_of_a_block(size=2**26):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of_a_block()
given_back = faults_of_a_block()
assert keep_memory()
faults_of_a_block()
print(given_back, faults_of_a_block())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 1000 and kept < 100


@pytest.mark.parametrize("size", [0, 1, 1000, 5 << 20])
def test_zeros_begin_a_cache_line(size):
    zeros = device.line_aligned_zeros(size)
    assert zeros.shape == (size,) and zeros.dtype == torch.uint8 and not zeros.any()
    assert size == 0 or zeros.data_ptr() % device.CACHE_LINE == 0


class GlibC:
    """Keeps what it is told, as a C library would; older ones refuse large thresholds for blocks."""

    def __init__(self, largest=2**31):
        self.told, self.largest = {}, largest

    def mallopt(self, option, value):
        if option == -3 and value > self.largest:
            return 0
        self.told[option] = value
        return 1


def test_freed_memory_is_kept_where_glibc_can_and_its_owner_has_not_spoken(monkeypatch):
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device.sys, "platform", "linux")
    for library, threshold in ((GlibC(), 2**30), (GlibC(largest=2**25), 2**25)):
        monkeypatch.setattr(device.ctypes, "CDLL", lambda name, library=library: library)
        assert device.keep_memory() and library.told == {-8: 1, -1: 2**31 - 1, -3: threshold}
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert not device.keep_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: object())  # musl has no mallopt
    assert not device.keep_memory()
