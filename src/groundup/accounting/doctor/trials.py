"""Programs that are tried out in a process of their own; each prints the seconds that it took:

python -m groundup.accounting.doctor.trials compile DEVICE
python -m groundup.accounting.doctor.trials triton
"""

import importlib
import sys
import time

import torch
import torch.compiler.config
from torch import Tensor


def compile_and_run(device: torch.device) -> float:
    """Seconds of the first call of a compiled function whose result is right; nothing is taken from caches."""
    x = torch.linspace(-3, 3, 4096, device=device)

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))

    torch.compiler.config.force_disable_caches = True
    compiled = torch.compile(gelu)
    start = time.perf_counter()
    found = compiled(x)
    torch.testing.assert_close(found, torch.nn.functional.gelu(x))
    return time.perf_counter() - start


def triton_kernel() -> float:
    """Seconds of compiling and running a sum of two vectors, whose result is right."""
    add = importlib.import_module("groundup.accounting.doctor.triton_add").add  # Triton is not everywhere
    x = torch.arange(1000.0, device="cuda")
    start = time.perf_counter()
    torch.testing.assert_close(add(x, x), 2 * x)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(triton_kernel() if sys.argv[1] == "triton" else compile_and_run(torch.device(sys.argv[2])))
