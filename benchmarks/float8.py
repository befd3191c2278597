"""Seconds of a linear layer's three products (forward, and both of the backward pass) in bf16, fp8 and mxfp8.

    python benchmarks/float8.py [--device cuda] [--rows 8192 --d-in 4096 --d-out 16384] [--seconds 20]

Quantising is part of the time, as in training. The precisions take turns; the last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch

from groundup.bench.measure import interleave
from groundup.device import environment, synchronize
from groundup.kernels.quantized_linear import native, quantized_linear


def products(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, precision: str) -> None:
    if precision == "bf16":
        y = torch.nn.functional.linear(x, weight.to(x.dtype))
    else:
        y = quantized_linear(x, weight, precision)  # type: ignore[arg-type]
    torch.autograd.grad(y, (x, weight), grad)


def rate(work: Callable[[], None], device: torch.device, flops: float, repeats: int = 5) -> float:
    """FLOP/s of the middle one of several calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        begun = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return flops / sorted(seconds)[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in (("rows", 8192), ("d-in", 4096), ("d-out", 16384)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    device = torch.device(options.device)
    x = torch.randn(options.rows, options.d_in, device=device).bfloat16().requires_grad_()
    weight = torch.randn(options.d_out, options.d_in, device=device, requires_grad=True)
    grad = torch.randn(options.rows, options.d_out, device=device).bfloat16()
    flops = 6.0 * options.rows * options.d_in * options.d_out
    programs = {
        name: partial(rate, partial(products, x, weight, grad, name), device, flops)
        for name in ("bf16", "fp8", "mxfp8")
    }
    measured = interleave(programs, seconds=options.seconds)
    result = {name: {"flops": rates.median, "spread": rates.spread} for name, rates in measured.items()}
    facts = {"shape": [options.rows, options.d_in, options.d_out], "float8_units": native(device.type)}
    ratio = measured["fp8"].median / measured["bf16"].median
    print(json.dumps({**facts, "rates": result, "ratio": ratio, "environment": environment()}))


if __name__ == "__main__":
    main()
