"""Which of the programs that make things fast are here and work: compilers, kernels, number types, versions."""

import importlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from groundup.accounting.doctor import child, system
from groundup.accounting.doctor.check import Check, mebibytes
from groundup.accounting.doctor.matmul import MatmulRate
from groundup.device import environment
from groundup.environ import cache_directory, env
from groundup.tokenizer.fast import objects

COMPILE_SECONDS, KERNEL_SECONDS = 120.0, 60.0
# Largest error of a product of 64 x 64 standard normal numbers, relative to the largest entry.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}


def software_checks(
    device: torch.device, rates: Sequence[MatmulRate], *, full: bool = False, root: Path = system.ROOT
) -> list[Check]:
    """All of them. `full` adds those that take long: torch.compile, and compiling the tokenizer's kernels."""
    found = [versions(), gpu(root), instructions(root), onednn(), *number_types(device, rates), cxx(), numba()]
    found += [kernel_cache(cache_directory() / "kernels"), triton(device)]
    return found + ([kernel_compile(), torch_compile(device)] if full else [])


def versions() -> Check:
    """Of what the results depend on."""
    named = environment()["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in named.items())
    return Check("versions", "ok", f"python {platform.python_version()}, {listed}, CUDA {torch.version.cuda or 'none'}")


def gpu(root: Path = system.ROOT, usable: bool | None = None) -> Check:
    """A GPU that is there but that torch cannot use is the commonest fault of an installation."""
    usable = torch.cuda.is_available() if usable is None else usable
    driver, built = system.driver(root), torch.version.cuda or torch.version.hip
    if usable:
        return Check("GPU", "ok", f"{torch.cuda.device_count()} usable, driver {driver or 'unknown'}, CUDA {built}")
    if driver is None:
        return Check("GPU", "absent", "no NVIDIA driver is loaded; computing is done on the CPU")
    if built is None:
        return Check("GPU", "broken", f"driver {driver} is loaded, but this torch is built for CPUs only",
                     "install torch from the index of a CUDA version: pytorch.org/get-started")  # fmt: skip
    return Check("GPU", "broken", f"driver {driver} is loaded, but torch (CUDA {built}) sees no GPU",
                 "update the driver to one for that CUDA, or look at CUDA_VISIBLE_DEVICES")  # fmt: skip


def instructions(root: Path = system.ROOT, used: str | None = None) -> Check:
    """The processor's vector and matrix instructions, and which of them torch uses."""
    flags, used = system.cpu_flags(root), used or torch.backends.cpu.get_cpu_capability()
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16")
    listed = " ".join(name for name in known if name in flags) or "none that are known here"
    if "avx512f" in flags and "AVX512" not in used.upper():
        return Check("instructions", "warning", f"the processor has {listed}, torch uses {used}",
                     "unset ATEN_CPU_CAPABILITY, or install a torch that is built with AVX-512")  # fmt: skip
    return Check("instructions", "ok", f"{listed}; torch uses {used}")


def onednn() -> Check:
    """The library that CPUs' matrix products in bf16 run in."""
    if torch.backends.mkldnn.is_available():
        return Check("oneDNN", "ok", "products in bf16 use it")
    if platform.machine() not in ("x86_64", "AMD64"):
        return Check("oneDNN", "absent", f"this torch for {platform.machine()} is built without it")
    return Check("oneDNN", "warning", "this torch is built without it: bf16 is slow on the CPU",
                 "install torch from PyPI, which has it")  # fmt: skip


def number_types(device: torch.device, rates: Sequence[MatmulRate]) -> list[Check]:
    """For each type that was measured: does its product work, is it right, and is it any faster than fp32?"""
    most = max((rate.threads for rate in rates), default=1)
    alike = [rate for rate in rates if rate.threads == most]
    fp32 = max((rate.flops for rate in alike if rate.dtype == "fp32"), default=0.0)
    return [_number_type(device, rate, fp32) for rate in alike]


def _number_type(device: torch.device, found: MatmulRate, fp32: float) -> Check:
    dtype, rate, error = found.dtype, found.flops, found.error
    name, needed = f"{dtype} products", dtype in ("fp32", "bf16")
    fix = "install another version of torch, or choose another --device"
    if not rate:
        return Check(name, "broken", error, fix) if needed else Check(name, "absent", error or "not measured")
    if dtype in TOLERANCES and (off := product_error(device, dtype)) > TOLERANCES[dtype]:
        return Check(name, "broken", f"wrong by {off:.1%} of the largest entry", fix)
    times = f"{rate / fp32:.2g} times fp32's rate" if fp32 and dtype != "fp32" else "works"
    return Check(name, "ok", times + (": of no use for speed here" if fp32 and rate < 0.9 * fp32 else ""))


def product_error(device: torch.device, dtype: str) -> float:
    """Largest difference from the product in double precision, relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator) for _ in range(2))
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    exact = a.double() @ b.double()
    found = (a.to(device, kind) @ b.to(device, kind)).double().cpu()
    return float((found - exact).abs().max() / exact.abs().max())


def cxx() -> Check:
    """torch.compile makes C++ on CPUs, and needs someone to translate it."""
    names = [name for name in (env("CXX"), "c++", "g++", "clang++", "cl") if name]
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        return Check("C++ compiler", "warning", f"no {', '.join(names)} here: torch.compile cannot work on CPUs",
                     "install one, such as: apt install g++")  # fmt: skip
    return Check("C++ compiler", "ok", _first_words(path))


def _first_words(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return program
    return f"{program}: {done.stdout.splitlines()[0]}" if done.stdout.strip() else program


def numba() -> Check:
    """What compiles the tokenizer and the n-gram model on this machine: a small loop, checked by its result."""
    fix = "pip install --upgrade numba llvmlite; see whether Numba supports this version of Python"
    try:
        loop = importlib.import_module("groundup.accounting.doctor.compiled")
        total = loop.read(np.ones(8, dtype=np.int64), 2)  # 1 ^ 0 and 1 ^ 1, eight times
    except Exception as error:  # whatever a broken installation raises
        return Check("Numba", "broken", f"does not compile: {type(error).__name__}: {error}".splitlines()[0], fix)
    if total != 8:
        return Check("Numba", "broken", f"a loop that must give 8 gave {total}", fix)
    return Check("Numba", "ok", "compiles")


def kernel_cache(folder: Path) -> Check:
    """The tokenizer's machine code, kept from the first use on."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if nearest is None or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        return Check("kernel cache", "warning", f"{folder} cannot be written: every process compiles for itself",
                     "export GROUNDUP_CACHE=FOLDER, with a folder that you may write to")  # fmt: skip
    files = list(folder.glob("*.o"))
    if not files:
        return Check("kernel cache", "ok", f"{folder} is empty: the first use of the tokenizer takes some seconds more")
    size = sum(file.stat().st_size for file in files)
    return Check("kernel cache", "ok", f"{folder}: {len(files)} compiled units, {mebibytes(size)}")


def kernel_compile() -> Check:
    """The tokenizer's decoder, compiled unless it is kept already."""
    log = logging.getLogger(objects.__name__)
    before, log.disabled = log.disabled, True
    try:
        objects.addresses("decode")
    except (ImportError, OSError, RuntimeError) as error:
        return Check("tokenizer kernels", "broken", str(error), "pip install --upgrade numba llvmlite")
    finally:
        log.disabled = before
    return Check("tokenizer kernels", "ok", "loaded; compiled where it was not kept already")


def triton(device: torch.device) -> Check:
    """Kernels for GPUs: installed, and on a GPU one is compiled and run, by a process of its own."""
    installed = environment()["versions"].get("triton")
    if device.type != "cuda":
        return Check("Triton", "absent", f"{installed or 'not installed'}; its kernels run on GPUs only")
    if installed is None:
        return Check("Triton", "warning", "not installed: plain torch is used instead", "pip install triton")
    out, error = child.finish(child.start(f"{__package__}.trials", "triton"), KERNEL_SECONDS)
    if error:
        return Check("Triton", "broken", f"{installed} cannot run a kernel: {error}",
                     "install the triton that your torch asks for, and a C compiler")  # fmt: skip
    return Check("Triton", "ok", f"{installed}: compiled and ran a kernel in {float(out):.1f} s")


def torch_compile(device: torch.device, seconds: float = COMPILE_SECONDS) -> Check:
    """A small function, compiled anew and run in a process of its own, for which there is a limit of time."""
    out, error = child.finish(child.start(f"{__package__}.trials", "compile", str(device)), seconds)
    if error:
        return Check("torch.compile", "warning", f"does not work: {error}",
                     "install a C++ compiler and Python's headers; until then models run uncompiled")  # fmt: skip
    return Check("torch.compile", "ok", f"compiled a small function in {float(out):.1f} s")
