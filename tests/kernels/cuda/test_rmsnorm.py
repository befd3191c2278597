"""RMSNorm in CUDA C++: it compiles where nvcc is, refuses where it cannot run, and equals its twins on a GPU."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundup.kernels import backend, rmsnorm
from groundup.kernels.cuda import _build, compare, norm

SOURCE = Path(_build.__file__).with_name("rmsnorm.cu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

needs_nvcc = pytest.mark.skipif(_build.find_nvcc() is None, reason="needs nvcc, the CUDA compiler")


@needs_nvcc
def test_it_compiles_for_hopper_without_spills_and_with_loads_of_128_bits(tmp_path):
    said = _build.compile_library(SOURCE, tmp_path / "rmsnorm.so", 90, "-Xptxas=-v")
    assert len(re.findall(r"Compiling entry function", said)) == 2 * len(norm.PAIRS)
    assert set(re.findall(r"(\d+) bytes spill stores", said)) == {"0"}
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", said)) <= 64  # two blocks of 512 threads and more
    library = ctypes.CDLL(str(tmp_path / "rmsnorm.so"))
    for pair in norm.PAIRS:
        types = "_".join(str(dtype).removeprefix("torch.") for dtype in pair)
        assert library[f"forward_{types}"] and library[f"backward_{types}"]
    ptx = tmp_path / "rmsnorm.ptx"
    command = [str(_build.find_nvcc()), "-O3", "-std=c++17", "--ptx", "-arch=compute_90", "-o", str(ptx), str(SOURCE)]
    subprocess.run(command, check=True)
    assert len(re.findall(r"ld\.global(?:\.nc)?\.v4", ptx.read_text())) >= 2 * len(norm.PAIRS)


@needs_nvcc
def test_a_library_is_built_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))
    _build.library.cache_clear()
    _build.library("rmsnorm", 90)
    (built,) = (tmp_path / "cuda").iterdir()
    _build.library.cache_clear()
    monkeypatch.setattr(_build, "compile_library", None)  # would fail if it were called again
    _build.library("rmsnorm", 90)
    assert [built] == list((tmp_path / "cuda").iterdir())
    _build.library.cache_clear()


@needs_nvcc
def test_a_source_that_does_not_compile_gives_the_compilers_words(tmp_path):
    broken = tmp_path / "broken.cu"
    broken.write_text("int f() { return undeclared; }")
    with pytest.raises(OSError, match=r"could not build broken.cu for sm_90(?s:.)*undeclared"):
        _build.compile_library(broken, tmp_path / "broken.so", 90)


def test_without_the_compiler_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _build.find_nvcc() is None
    with pytest.raises(OSError, match="needs nvcc, the CUDA compiler"):
        _build.compile_library(SOURCE, tmp_path / "rmsnorm.so", 90)


def test_what_it_cannot_take_is_refused_with_the_reason():
    cases = [
        (torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8), "float32, bfloat16 and float16"),
        (torch.zeros(2, 7), torch.zeros(7), "16 bytes at once"),
        (torch.zeros(2, 8), torch.zeros(8), "CUDA tensors"),
    ]
    for x, weight, reason in cases:
        with backend("cuda"), pytest.raises(ValueError, match=reason):
            rmsnorm(x, weight)


def test_it_is_never_a_default_and_never_imported_unasked():
    source = "import sys, torch, groundup.kernels as k; k.rmsnorm(torch.ones(8), torch.ones(8)); print([*sys.modules])"
    env = os.environ | {"PYTHONPATH": str(SOURCE.parents[3])}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, env=env)
    assert "groundup.kernels.norm" in done.stdout and "groundup.kernels.cuda" not in done.stdout


def test_the_comparison_needs_a_gpu_and_says_so():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(ValueError, match="no CUDA GPU"):
        compare.compare_rmsnorm(8, 8)


def with_gradients(x, weight, upstream):
    x, weight = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    y = rmsnorm(x, weight, 1e-5)
    return [y.detach(), *torch.autograd.grad(y, [x, weight], upstream.to(y.dtype))]


@pytest.mark.gpu
@needs_nvcc
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 8), (3, 40), (2, 3, 4096), (1, 16392), (0, 8)])
def test_three_ways_on_a_gpu(dtype, shape):
    x, upstream = torch.randn(2, *shape, device="cuda").to(dtype)
    weight = 1 + torch.randn(shape[-1], device="cuda")
    with backend("reference"):
        exact = with_gradients(x.double(), weight.double(), upstream)
    for name in ("cuda", "triton"):
        try:
            with backend(name):
                found = with_gradients(x, weight, upstream)
        except ValueError as error:
            if name == "cuda":
                raise
            pytest.skip(str(error))
        for a, b in zip(found, exact, strict=True):
            scale = b.abs().max().item() if b.numel() else 0.0
            torch.testing.assert_close(a.double(), b, rtol=0, atol=TOLERANCE[dtype] * scale + 1e-30)


@pytest.mark.gpu
@needs_nvcc
def test_a_view_that_begins_in_the_middle_of_a_pack_on_a_gpu():
    x, weight = torch.randn(41, device="cuda")[1:].view(5, 8), torch.ones(8, device="cuda")
    with backend("cuda"):
        torch.testing.assert_close(rmsnorm(x, weight), rmsnorm.reference(x, weight))


@pytest.mark.gpu
@needs_nvcc
def test_the_comparison_on_a_gpu_has_all_four():
    timings = {timing.name: timing for timing in compare.compare_rmsnorm(256, 1024, repeats=3)}
    assert set(timings) == {"torch", "torch.compile", "triton", "cuda"}
    assert timings["cuda"].seconds is not None and timings["torch"].seconds is not None
