"""Made-up machines: folders that stand for /, with what /proc and /sys would say, or nonsense."""

import pytest

from groundup.accounting.doctor import system
from groundup.accounting.doctor.system import Cache, Cores
from tests.accounting.doctor.made_up import made


def cache(cpu, index, level, kind, size, shared):
    folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    values = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
    return {f"{folder}/{name}": f"{value}\n" for name, value in values.items()}


def test_caches_of_two_cores_that_share_the_last(tmp_path):
    files = {}
    for cpu in (0, 1):
        files |= cache(cpu, 0, 1, "Data", "48K", cpu) | cache(cpu, 1, 1, "Instruction", "32K", cpu)
        files |= cache(cpu, 2, 2, "Unified", "1024K", cpu) | cache(cpu, 3, 3, "Unified", "32M", "0-1")
    assert system.caches(made(tmp_path, files)) == [
        Cache(1, "Data", 48 * 2**10, 2),
        Cache(1, "Instruction", 32 * 2**10, 2),
        Cache(2, "Unified", 2**20, 2),
        Cache(3, "Unified", 2**25, 1),
    ]


@pytest.mark.parametrize("size", ["", "0K", "-1K", "many", "48KB", "٣K"])
def test_a_cache_of_no_size_is_left_out(size, tmp_path):
    assert system.caches(made(tmp_path, cache(0, 0, 1, "Data", size, 0))) == []


def test_an_empty_machine_says_nothing(tmp_path):
    (tmp_path / "sys/devices/system/cpu/cpu0/cache/index0").mkdir(parents=True)
    assert system.caches(tmp_path) == []
    for read in (system.cores, system.load_average, system.huge_pages, system.cpu_quota, system.memory_limit,
                 system.driver):  # fmt: skip
        assert read(tmp_path) is None
    assert system.meminfo(tmp_path) == {} and system.cpu_flags(tmp_path) == frozenset()


def test_files_that_hold_nonsense(tmp_path):
    names = ("proc/loadavg", "proc/cpuinfo", "proc/meminfo", "proc/driver/nvidia/version", "sys/fs/cgroup/cpu.max",
             "sys/fs/cgroup/memory.max", "sys/kernel/mm/transparent_hugepage/enabled")  # fmt: skip
    for text in (b"", b"\xff\xfe\0\0", b"nan nan nan", b"max max"):
        for name in names:
            made(tmp_path, {name: ""})
            (tmp_path / name).write_bytes(text)
        assert system.load_average(tmp_path) is None and system.cpu_quota(tmp_path) is None
        assert system.memory_limit(tmp_path) is None and system.driver(tmp_path) is None
        assert system.meminfo(tmp_path) == {} and system.huge_pages(tmp_path) is None


def test_what_a_server_says(tmp_path):
    topology = "sys/devices/system/cpu/cpu{}/topology/{}"
    files = {topology.format(n, "physical_package_id"): "0" for n in range(4)}
    files |= {topology.format(n, "core_id"): str(n % 2) for n in range(4)}  # 0 and 2 are one core's two threads
    files |= {
        "proc/loadavg": "3.25 1.00 0.50 2/400 12345\n",
        "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_tile\n",
        "proc/meminfo": "MemTotal:       16384 kB\nMemAvailable:    8192 kB\nHugePages_Total:       0\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "4194304\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5 22:23:56\n",
    }
    root = made(tmp_path, files)
    assert system.cores(root) == Cores(logical=4, physical=2)
    assert system.load_average(root) == 3.25
    assert system.cpu_flags(root) == {"fpu", "avx2", "avx512f", "amx_tile"}
    assert system.meminfo(root) == {"MemTotal": 2**24, "MemAvailable": 2**23}
    assert system.huge_pages(root) == "madvise"
    assert system.cpu_quota(root) == 1.5
    assert system.memory_limit(root) == 2**22
    assert system.driver(root) == "550.54.15"


def test_no_limit_is_none(tmp_path):
    root = made(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert system.cpu_quota(root) is None and system.memory_limit(root) is None


def test_arm_calls_them_features(tmp_path):
    assert system.cpu_flags(made(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd bf16\n"})) == {"fp", "asimd", "bf16"}
