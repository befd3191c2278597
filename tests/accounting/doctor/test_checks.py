"""Each check on a machine where it is fine, on one where it is not, and on one that does not say."""

import errno
import os
from collections import namedtuple

import pytest
import torch

from groundup.accounting.doctor import check_software, check_system, exit_code, software_checks, system_checks
from groundup.accounting.doctor.check import Check, mebibytes
from groundup.accounting.doctor.matmul import MatmulRate
from tests.accounting.doctor.made_up import made

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


def test_a_fault_says_what_to_do():
    with pytest.raises(AssertionError, match="disk: a broken check says what to do"):
        Check("disk", "broken", "full")
    assert Check("disk", "absent", "none").fix == ""


def test_only_something_broken_fails():
    fine, slow = Check("a", "ok", ""), Check("b", "warning", "", "x")
    assert exit_code([]) == exit_code([fine, slow, Check("c", "absent", "")]) == 0
    assert exit_code([fine, Check("d", "broken", "", "x")]) == 1


def test_a_machine_that_says_nothing_is_no_fault(tmp_path):
    checks = {check.name: check for check in system_checks(tmp_path, root=tmp_path / "nothing")}
    assert checks["other load"].state == checks["memory"].state == checks["huge pages"].state == "absent"
    assert checks["/dev/shm"].state == "absent"
    assert "broken" not in {check.state for check in checks.values() if check.name != "disk"}


@pytest.mark.parametrize(("load", "state"), [("0.00", "ok"), ("4.00", "ok"), ("4.01", "warning"), ("inf", "absent")])
def test_load_above_the_cores_makes_rates_doubtful(load, state, tmp_path):
    root = made(tmp_path, {"proc/loadavg": f"{load} 1 1 1/1 1\n"})
    found = check_system.other_load(root, usable=4)
    assert found.state == state and ("doubtful" in found.why) == (state == "warning")


def topology(cores):
    folder = "sys/devices/system/cpu/cpu{}/topology"
    return {f"{folder.format(n)}/core_id": str(core) for n, core in enumerate(cores)}


@pytest.mark.parametrize(
    ("files", "usable", "used", "named", "state", "fix"),
    [
        ({}, 4, 4, None, "ok", ""),
        ({}, 4, 2, None, "ok", ""),  # chosen by a program
        ({}, 4, 2, "2", "warning", "unset OMP_NUM_THREADS"),
        ({}, 4, 8, None, "warning", "OMP_NUM_THREADS=4"),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 4, 4, None, "warning", "OMP_NUM_THREADS=1"),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 4, 4, None, "warning", "OMP_NUM_THREADS=1"),
        ({"sys/fs/cgroup/cpu.max": "400000 100000"}, 4, 4, None, "ok", ""),
        (topology([0, 1, 0, 1]), 4, 4, None, "warning", "OMP_NUM_THREADS=2"),
        (topology([0, 1, 2, 3]), 4, 4, None, "ok", ""),
    ],
)
def test_threads(files, usable, used, named, state, fix, tmp_path, monkeypatch):
    monkeypatch.setattr(check_system, "env", lambda name: named)
    found = check_system.threads(made(tmp_path, files), usable, used)
    assert found.state == state and fix in found.fix
    assert f"OMP_NUM_THREADS={named}" in found.why if named else "is not set" in found.why


@pytest.mark.parametrize(
    ("free", "limit", "state"), [(2**21, "max", "ok"), (2**19, "max", "warning"), (2**21, str(2**28), "warning")]
)
def test_memory(free, limit, state, tmp_path):
    files = {"proc/meminfo": f"MemTotal: {2**22} kB\nMemAvailable: {free} kB\n", "sys/fs/cgroup/memory.max": limit}
    found = check_system.free_memory(made(tmp_path, files))
    assert found.state == state and ("container" in found.why) == (limit != "max")


@pytest.mark.parametrize(("text", "state"), [("always madvise [never]", "warning"), ("[always] madvise never", "ok")])
def test_huge_pages(text, state, tmp_path):
    root = made(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": text})
    assert check_system.huge_pages(root).state == state


@pytest.mark.parametrize(("size", "state"), [(2**26, "warning"), (2**30, "ok")])
def test_shared_memory_of_a_container(size, state, monkeypatch):
    monkeypatch.setattr(check_system.shutil, "disk_usage", lambda path: Usage(size, 0, size))
    assert check_system.shared_memory().state == state


@pytest.mark.parametrize(
    ("free", "speed", "state"),
    [(2**40, 1e9, "ok"), (2**40, 1e6, "warning"), (2**31, 1e9, "warning"), (2**20, 1e9, "broken")],
)
def test_disk(free, speed, state, tmp_path, monkeypatch):
    monkeypatch.setattr(check_system.shutil, "disk_usage", lambda path: Usage(2**41, 0, free))
    monkeypatch.setattr(check_system, "write_speed", lambda folder: speed)
    found = check_system.disk(tmp_path / "not" / "there" / "yet")
    assert found.state == state and found.why.startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "choose another folder")]
)
def test_a_disk_that_cannot_be_written(number, fix, tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(check_system, "write_speed", fail)
    found = check_system.disk(tmp_path)
    assert found.state == "broken" and os.strerror(number) in found.why and fix in found.fix


def test_writing_is_measured_and_leaves_nothing(tmp_path):
    assert check_system.write_speed(tmp_path, 2**12) > 0
    assert list(tmp_path.iterdir()) == []


NVIDIA = {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n"}


@pytest.mark.parametrize(
    ("files", "usable", "built", "state", "words"),
    [
        ({}, False, None, "absent", "no NVIDIA driver"),
        (NVIDIA, False, None, "broken", "driver 550.54.15 is loaded, but this torch is built for CPUs only"),
        (NVIDIA, False, "12.8", "broken", "torch (CUDA 12.8) sees no GPU"),
        (NVIDIA, True, "12.8", "ok", "driver 550.54.15, CUDA 12.8"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_broken(files, usable, built, state, words, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", built)
    found = check_software.gpu(made(tmp_path, files), usable)
    assert found.state == state and words in found.why


@pytest.mark.parametrize(
    ("flags", "used", "state"),
    [("avx2 avx512f amx_tile", "AVX512", "ok"), ("avx2 avx512f", "AVX2", "warning"), ("avx2", "AVX2", "ok"),
     ("", "DEFAULT", "ok")],
)  # fmt: skip
def test_instructions(flags, used, state, tmp_path):
    found = check_software.instructions(made(tmp_path, {"proc/cpuinfo": f"flags : {flags}\n"}), used)
    assert found.state == state and (flags or "none that are known here") in found.why


def test_number_types():
    rates = [MatmulRate("fp32", 1, 9e9), MatmulRate("fp32", 2, 1e10), MatmulRate("bf16", 2, 4e10),
             MatmulRate("fp16", 2, 1e9), MatmulRate("fp8", 2, 0.0, None, "no kernel")]  # fmt: skip
    found = {check.name: check for check in check_software.number_types(CPU, rates)}
    assert found["fp32 products"].why == "works" and found["bf16 products"].why == "4 times fp32's rate"
    assert found["fp16 products"].why == "0.1 times fp32's rate: of no use for speed here"
    assert (found["fp8 products"].state, found["fp8 products"].why) == ("absent", "no kernel")


@pytest.mark.parametrize(("dtype", "state"), [("fp32", "broken"), ("bf16", "broken"), ("fp16", "absent")])
def test_a_type_that_training_needs_and_that_fails_is_broken(dtype, state):
    (found,) = check_software.number_types(CPU, [MatmulRate(dtype, 2, 0.0, None, "no kernel")])
    assert (found.state, found.why) == (state, "no kernel")


def test_a_product_that_is_wrong_is_broken(monkeypatch):
    assert 0 < check_software.product_error(CPU, "bf16") < check_software.TOLERANCES["bf16"]
    monkeypatch.setattr(check_software, "product_error", lambda device, dtype: 0.5)
    (found,) = check_software.number_types(CPU, [MatmulRate("bf16", 2, 1e9)])
    assert found.state == "broken" and "wrong by 50.0%" in found.why


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(check_software.shutil, "which", lambda name: None)
    monkeypatch.setattr(check_software, "env", lambda name: "/opt/cxx")
    found = check_software.cxx()
    assert found.state == "warning" and "no /opt/cxx, c++" in found.why


def test_numba_compiles_or_is_broken(monkeypatch):
    assert check_software.numba().state == "ok"

    def fail(name):
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(check_software.importlib, "import_module", fail)
    found = check_software.numba()
    assert found.state == "broken" and "No module named 'numba'" in found.why


def test_the_kernel_cache(tmp_path):
    assert "is empty" in check_software.kernel_cache(tmp_path).why
    assert "is empty" in check_software.kernel_cache(tmp_path / "not" / "there").why
    (tmp_path / "a.o").write_bytes(b"x" * 2048)
    assert "1 compiled units, 2 KiB" in check_software.kernel_cache(tmp_path).why
    file = made(tmp_path, {"file": ""}) / "file"
    assert check_software.kernel_cache(file / "kernels").state == "warning"  # a file where a folder should be


def test_triton_is_for_gpus():
    assert check_software.triton(CPU).state == "absent"


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [(("1.25\n", None), "ok", "in 1.2 s"), (("", "no answer within 1 s"), "warning", "no answer within 1 s")],
)
def test_torch_compile_works_or_is_said_not_to(answer, state, words, monkeypatch):
    monkeypatch.setattr(check_software.child, "start", lambda *words: None)
    monkeypatch.setattr(check_software.child, "finish", lambda process, seconds: answer)
    found = check_software.torch_compile(CPU)
    assert found.state == state and words in found.why


@pytest.mark.slow
def test_torch_compile_is_really_tried():
    found = check_software.torch_compile(CPU)
    assert found.state == "ok" or check_software.cxx().state != "ok", found.why


def test_everything_that_is_checked_has_a_name_of_its_own(tmp_path):
    found = [*system_checks(tmp_path), *software_checks(CPU, [MatmulRate("fp32", 1, 1e9)])]
    assert len({check.name for check in found}) == len(found)


def test_sizes_for_people():
    assert [mebibytes(size) for size in (0, 2**10, 2**20, 3 * 2**29)] == ["0 KiB", "1 KiB", "1 MiB", "1.5 GiB"]
