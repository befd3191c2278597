"""AdamW for many tensors in one launch: each number of a parameter and its state moves to the chip and back once.

Per parameter in float32, 16 bytes are read (parameter, gradient, two moments) and 12 written; `optim.adamw.adamw_`
makes seven passes. A launch per tensor would cost more than the work on small ones (norm gains), so a program finds its
tensor in a table: row t has the addresses of tensor t's parameter, gradient, moments and step, and its length; a second
table has, for each program, the tensor and which block of it. The tables are made when an address is new, which with a
caching allocator is in the first steps.

How many steps a tensor has seen is on the device, and so is `skip`: the host neither waits nor knows.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._support import refuses_device, tuned

# 8 elements per thread of each of four tensors.
BLOCKS = {"BLOCK": 1024, "warps": 4}
CANDIDATES = {"adamw_step": [{"BLOCK": n, "warps": w} for n, w in ((512, 4), (1024, 8), (2048, 8), (4096, 8))]}

_tables: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
MOST_TABLES = 16
"""Kept: one per parameter group, and a few for an allocator that has not settled yet."""


def refuses_adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    **options: Any,
) -> str | None:
    for together in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if any(t.dtype != params[0].dtype for t in together):
            return f"the tensors are of {sorted({str(t.dtype) for t in together})}, and one launch takes one type"
        if any(t.stride() != together[0].stride() or not _is_dense(t) for t in together):
            return "a parameter, its gradient and its moments do not lie in memory in one order"
    if any(step.dtype != torch.float32 for step in steps):
        return "a number of steps is not of float32"
    return refuses_device(*params, *grads, *steps, options.get("skip"))


def _is_dense(tensor: Tensor) -> bool:
    """Without gaps: in some order of its axes it is contiguous."""
    if tensor.is_contiguous():
        return True
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    skip: Tensor | None = None,
) -> None:
    blocks = tuned("adamw_step", (params[0].dtype,), BLOCKS)
    numbers = (
        1.0 - lr * weight_decay, lr, 1.0 - betas[0], betas[1], 1.0 - betas[1],
        math.log(betas[0]) if betas[0] else -math.inf, math.log(betas[1]) if betas[1] else -math.inf, eps,
    )  # fmt: skip
    rows = list(zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True))
    for even in (True, False):
        tensors, programs = _find_tables([row for row in rows if _is_even(row) == even], blocks["BLOCK"])
        if len(programs):
            _adamw[(len(programs),)](
                params[0], tensors, programs, steps[0] if skip is None else skip, *numbers,
                SKIPPABLE=skip is not None, EVEN=even, BLOCK=blocks["BLOCK"], num_warps=blocks["warps"],
            )  # fmt: skip


def _is_even(row: tuple[Tensor, ...]) -> bool:
    """Whether addresses and lengths divide by 16, so that a thread's loads are whole and of 128 bits. Few do not."""
    return row[0].numel() % 16 == 0 and all(t.data_ptr() % 16 == 0 for t in row[:4])


def traffic(parameters: int, element_bytes: int = 4) -> int:
    """Bytes from and to DRAM in a step: four tensors read, three written."""
    return 7 * parameters * element_bytes


def _find_tables(rows: list[tuple[Tensor, ...]], block: int) -> tuple[Tensor, Tensor]:
    """(int64 [tensors, 6], int32 [programs, 2]) on the device of the tensors."""
    device = rows[0][0].device if rows else torch.device("cpu")
    key = (block, *((*(t.data_ptr() for t in row), row[0].numel()) for row in rows))
    if key not in _tables:
        while len(_tables) >= MOST_TABLES:
            del _tables[next(iter(_tables))]
        tensors = torch.tensor(key[1:], dtype=torch.int64).view(-1, 6)
        counts = (tensors[:, 5] + block - 1) // block
        owner = torch.arange(len(rows)).repeat_interleave(counts)
        within = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        _tables[key] = tensors.to(device), torch.stack([owner, within], 1).int().to(device)
    return _tables[key]


@triton.jit
def _one_minus_exp(x):
    """1 - e^x for x <= 0. Near 0 the difference would keep few digits: of 1 - 0.999, four; so there by its series."""
    small = tl.maximum(x, -0.5)
    series = tl.full((), 0.0, tl.float32)
    for k in tl.static_range(9):  # pyright: ignore[reportGeneralTypeIssues]
        series = (series + 1.0) * small / (9 - k)
    return tl.where(x > -0.5, -series, 1.0 - tl.exp(x))


@triton.jit
def _adamw(
    like, tensors, programs, skip, shrink, lr, towards_mean, beta2, towards_square, log_beta1, log_beta2, eps,
    SKIPPABLE: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`like` is any of the tensors: what the addresses point to is of its type."""
    program = tl.program_id(0)
    row = tensors + 6 * tl.load(programs + 2 * program).to(tl.int64)
    places = tl.load(programs + 2 * program + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(row + 5)
    if SKIPPABLE:  # of no length, nothing is loaded and nothing stored
        length = tl.where(tl.load(skip) == 0, length, 0)
    # Without the promise of EVEN each number would be loaded by itself.
    even: tl.constexpr = 16 if EVEN else 1  # pyright: ignore[reportAssignmentType]
    inside = places < tl.multiple_of(length, even)

    param = tl.multiple_of(tl.load(row).to(like.dtype), even) + places
    grad = tl.multiple_of(tl.load(row + 1).to(like.dtype), even) + places
    mean = tl.multiple_of(tl.load(row + 2).to(like.dtype), even) + places
    square = tl.multiple_of(tl.load(row + 3).to(like.dtype), even) + places
    step = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)))

    p = tl.load(param, mask=inside, other=0.0).to(tl.float32) * shrink
    g = tl.load(grad, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(mean, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(square, mask=inside, other=0.0).to(tl.float32)
    m += towards_mean * (g - m)
    v = v * beta2 + towards_square * g * g
    # Both start at 0 and hold the share 1 - beta^step of what they would if the past had been like the present.
    corrected = tl.sqrt(v) / tl.sqrt(_one_minus_exp(step * log_beta2)) + eps
    p -= lr / _one_minus_exp(step * log_beta1) * m / corrected
    tl.store(param, p.to(like.dtype.element_ty), mask=inside)
    tl.store(mean, m.to(like.dtype.element_ty), mask=inside)
    tl.store(square, v.to(like.dtype.element_ty), mask=inside)
