"""What torch.compile makes of code with kernels, for a GPU that is not here: it traces, and nothing runs.

    kernels_in_graph([("tests.kernels.triton.graph_cases", "loss", [(4, 8)])])

In a process of its own: in this one, Triton interprets.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def kernels_in_graph(cases: list[tuple[str, str, list[tuple[int, ...]]]]) -> list[int]:
    """How many kernel launches the forward and backward pass of each case hold, in one graph.

    A case: a module, the name of a function in it, and the shapes of its arguments, of float32 with gradients.
    """
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[3]
    env["PYTHONPATH"] = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(cases), capture_output=True, text=True, env=env, cwd=root, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class _Traced(Exception):
    pass


def _pretend() -> None:
    """That there is a Hopper: without a target, it is not known which tensors a kernel writes."""
    import torch.utils._triton
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    torch.utils._triton.has_triton = lambda *_: True
    triton.runtime.driver.set_active(Driver())  # pyright: ignore[reportArgumentType]


def _count(module: str, name: str, shapes: list[list[int]]) -> int:
    from torch._dynamo.backends.common import aot_autograd

    found: list[Any] = []

    def stop(graph: Any, *_: Any, **__: Any) -> Any:
        found.append(graph)
        raise _Traced

    function = getattr(importlib.import_module(module), name)
    leaves = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    torch._dynamo.reset()
    try:
        backend = aot_autograd(fw_compiler=stop, partition_fn=stop)
        torch.compile(function, backend=backend, fullgraph=True)(*leaves)
    except Exception as error:
        if not found:
            raise error
    return sum("triton_kernel_wrapper" in str(node.target) for node in found[0].graph.nodes)


if __name__ == "__main__":
    _pretend()
    print(json.dumps([_count(*case) for case in json.load(sys.stdin)]))
