"""The marks are torch's own, and nothing that is imported brings the compiler with it."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from groundup.kernels._compiler import constant, untraced

ROOMS = "kernels model optim data parallel train inference evaluation scaling"


def number():
    return 3


def test_a_constant_is_marked_as_torch_marks_it():
    def other():
        return 3

    assert vars(constant(number)) == vars(torch.compiler.assume_constant_result(other))


def test_a_constant_is_called_while_the_graph_is_made():
    called = []

    @constant
    def scale() -> float:
        called.append(1)
        return 2.0

    counter = CompileCounter()
    compiled = torch.compile(lambda x: x * scale() + 1, backend=counter, fullgraph=True)
    for _ in range(3):
        assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
    assert (counter.frame_count, len(called)) == (1, 1)


@pytest.mark.parametrize("mark", [untraced, torch.compiler.disable])
def test_a_graph_ends_before_a_call_that_is_not_traced(mark):
    seen = []

    @mark
    def looks(x):
        seen.append(torch.compiler.is_compiling())
        return x * float(x.sum().item())  # what no graph holds

    counter = CompileCounter()
    compiled = torch.compile(lambda x: looks(x + 1) * 3, backend=counter)
    for _ in range(2):
        assert compiled(torch.ones(2)).tolist() == [24.0, 24.0]
    assert counter.frame_count == 2 and seen == [False, False]
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: looks(x + 1) * 3, backend=counter, fullgraph=True)(torch.ones(2))


def test_importing_every_room_leaves_the_compiler_alone():
    rooms = ", ".join(f"groundup.{room}" for room in ROOMS.split())
    program = f"import sys, {rooms}; print([m for m in ('torch._dynamo', 'sympy', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"
