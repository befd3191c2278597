"""Kernels compiled for a GPU that is not here, and what the machine code says of them.

    compiled = compile_ahead([Kernel("softmax", "_forward", {"x": "*bf16", ...}, {"BLOCK": 4096}, warps=8)])
    assert compiled[0].spilled_bytes == 0

In a process of its own, forked from the server that ranks come from, which has torch and Triton loaded: in this one,
Triton interprets.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import process_server

ARCHITECTURES = {80: "A100", 90: "H100, H200", 100: "B200"}


@dataclass(frozen=True)
class Kernel:
    """A kernel and what it is compiled for.

    module: the file's name in `kernels/triton`
    signature: type of every argument that is not a constant, e.g. "*bf16", "*fp32", "i32", "fp32"; of a pointer or
        an integer with ":16" behind it, divisibility by 16 is promised, as the launcher finds of most tensors
    """

    module: str
    name: str
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Compiled:
    """Resources of one block. registers: per thread. warpgroup_products, warp_products: tensor-core instructions."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    warpgroup_products: int
    warp_products: int
    asynchronous_copies: int


def compile_ahead(kernels: list[Kernel], architecture: int = 90) -> list[Compiled]:
    """A kernel takes 0.1 to 3 seconds: give many at once."""
    pytest.importorskip("triton")
    server = process_server()
    heard, told = server.Pipe(duplex=False)
    child = server.Process(target=_main, args=(told, str(Path(__file__).resolve().parents[3]), kernels, architecture))
    child.start()
    told.close()
    try:
        assert heard.poll(300), "the compiler has said nothing for 300 seconds"
        made, error = heard.recv()
    except EOFError:
        made, error = [], "the compiler died"
    finally:
        child.kill()
        child.join()
    assert not error, error[-3000:]
    return made


def _main(told: Connection, root: str, kernels: list[Kernel], architecture: int) -> None:
    """What the process does: (compiled kernels, "") or ([], what went wrong)."""
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path[:0] = [root, os.path.join(root, "src")]
    try:
        told.send(([_compile(kernel, architecture) for kernel in kernels], ""))
    except BaseException:
        told.send(([], traceback.format_exc()))


def _compile(kernel: Kernel, architecture: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"groundup.kernels.triton.{kernel.module}"), kernel.name)
    names = function.arg_names
    signature = {n: kernel.signature[n].split(":")[0] if n in kernel.signature else "constexpr" for n in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if kernel.signature.get(name, "").endswith(":16")
    }
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = made.asm["ptx"]
    registers, spilled = _resources(made.asm["cubin"])
    return Compiled(
        registers,
        spilled,
        made.metadata.shared,
        ptx.count("wgmma.mma_async"),
        ptx.count("mma.sync"),
        ptx.count("cp.async"),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes per thread that did not fit into them."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.findall(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", said)[-1]
    return int(registers), int(stack) + int(local)
