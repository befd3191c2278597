"""Which blocks are fastest: each candidate of a kernel's file is tried on an example, and the best is remembered.

Kept in the table of the device (`kernels/_table.py`) by launcher, type and shape, where `_support.tuned` finds it.
"""

import importlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from groundup.device import synchronize
from groundup.kernels import backend
from groundup.kernels._table import apart, table_of
from groundup.kernels.examples import Example, outcome

WORTH = 0.97
"""A candidate must take less than this share of the default's time: less may be noise."""


def tune(
    twin: ModuleType, op: Callable[..., Any], example: Callable[[], Example], device: torch.device, repeats: int = 5
) -> dict[str, dict[str, int]]:
    """Blocks that beat the defaults, by launcher and shape; they are also saved."""
    candidates: dict[str, list[dict[str, int]]] = getattr(twin, "CANDIDATES", {})
    support = importlib.import_module("groundup.kernels.triton._support")
    chosen: dict[str, dict[str, int]] = {}
    table = table_of(device)
    for launcher, options in candidates.items():
        support.asked.pop(launcher, None)
        try:
            expected = _run(op, example())
        except Exception:  # refused, or broken: the measurement will say so
            return chosen
        if launcher not in support.asked:  # another operation of the file asks for it
            continue
        key = support.blocks_key(launcher, support.asked[launcher])
        table.blocks.pop(key, None)
        best, limit = None, WORTH * _seconds(op, example, device, repeats)
        for blocks in options:
            with support.trying(launcher, blocks):
                seconds = _try(op, example, expected, device, repeats)
            if seconds < limit:
                best, limit = blocks, seconds
        if best is not None:
            chosen[key] = table.blocks[key] = best
    table.save()
    return chosen


def _run(op: Callable[..., Any], example: Example) -> list[torch.Tensor]:
    with backend("triton"):
        return outcome(op, example)


def _try(
    op: Callable[..., Any],
    example: Callable[[], Example],
    expected: list[torch.Tensor],
    device: torch.device,
    repeats: int,
) -> float:
    """Seconds with the blocks that are being tried; infinite where they do not fit the device or change the result."""
    try:
        got = _run(op, example())
        if max((apart(a, b) for a, b in zip(got, expected, strict=True)), default=0.0) > 1e-2:
            return float("inf")
        return _seconds(op, example, device, repeats)
    except Exception:  # too much shared memory or too many registers: Triton's own errors, of several kinds
        return float("inf")


def _seconds(op: Callable[..., Any], example: Callable[[], Example], device: torch.device, repeats: int) -> float:
    """The fastest of some runs, forward and backward."""
    made, best = example(), float("inf")
    _run(op, made)
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        _run(op, made)
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
