"""All strategies train the same model: one process that accumulates micro-batches is the oracle of every plan.

What the tolerance is of. Losses: relative to the oracle's, each of 200. Weights: each tensor's difference from the
oracle's, by the Euclidean norm, relative to that tensor's norm. By element it would be a statement about the smallest
elements: sums in another order differ by an ulp of the largest term, and elements near zero are not near in ulps.

What can be asked of 200 steps. Rounding differs between plans, and training enlarges any difference: hundreds of times
in 200 steps of SGD at a rate with which the loss bounces. So the rate is small (the loss still falls by a quarter), and
AdamW's eps is not: with 1e-8 an element whose gradient is a sum that cancels to rounding gets steps of full size in a
direction that rounding decides; with 1e-3 its step is as small as its gradient.

Gradients are clipped, by a norm that most steps exceed, so that every rank's norm is part of what is compared. Rows
have 17 to 2 tokens that count, so no two ranks have as many.

Four ranks on two cores take up to 0.2 s a step, so 200 steps are run here for some plans; for all by

    python -m tests.parallel.test_parity groundup 4 200 float64
"""

import sys
from functools import cache

import pytest
import torch
from torch import Tensor

from groundup.parallel.plan import ParallelPlan
from tests.distributed import run_ranks
from tests.parallel.parity import accumulated, train_all
from tests.thorough import one_in

FEW_STEPS = 5  # AdamW with moments, clipping and decay has done all that it ever does
TESTED = ["groundup", "torch"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
SINGLE = [
    ("data={n}", "tied"),
    ("data={n}", "experts"),
    ("data={n} zero=1", "tied"),
    ("data={n} zero=2", "dense"),
    ("shard={n}", "tied"),
    ("tensor={n}", "dense"),
    ("tensor={n} sequence=true", "tied"),
    ("pipeline={n} microbatches=4 schedule=gpipe", "deep"),
    ("pipeline={n} microbatches=4", "deep"),
    ("context={n}", "tied"),
    ("context={n} method=gather", "dense"),
    ("expert={n}", "experts"),
]
LONG = {
    2: [
        ("data=2", "experts"),
        ("data=2 zero=2", "dense"),
        ("shard=2", "tied"),
        ("tensor=2", "dense"),
        ("pipeline=2 microbatches=4", "deep"),
        ("context=2 method=gather", "dense"),
        ("expert=2", "experts"),
    ],
    4: [("data=4", "tied"), ("shard=4", "tied")],
}
INTERLEAVED = ("pipeline=2 microbatches=4 schedule=interleaved chunks=2", "deep")
PAIRS = [
    ("data=2 tensor=2", "tied"),
    ("data=2 tensor=2 zero=1", "tied"),
    ("data=2 context=2 zero=2", "dense"),
    ("data=2 expert=2", "experts"),
    ("data=2 context=2", "experts"),
    ("data=2 shard=2", "tied"),
    ("data=2 pipeline=2 microbatches=2", "deep"),
    ("pipeline=2 tensor=2 microbatches=2", "deep"),
    ("shard=2 tensor=2", "tied"),
    ("shard=2 tensor=2 sequence=true", "dense"),
    ("shard=2 context=2", "experts"),
    ("shard=2 expert=2", "experts"),
    ("tensor=2 context=2", "tied"),
    ("tensor=2 sequence=true context=2", "dense"),
    ("tensor=2 expert=2", "experts"),
    ("expert=2 context=2", "experts"),
    ("shard=2 data=2 recompute=true", "experts"),
    ("tensor=2 context=2 recompute=true", "tied"),
]


def singles(size: int) -> list[tuple[str, str]]:
    cases = [(text.format(n=size), kind) for text, kind in SINGLE]
    return [*cases, INTERLEAVED] if size == 2 else cases


oracle = cache(accumulated)


def parts_of(plan: ParallelPlan, kind: str) -> int:
    """Micro-batches of the oracle. Balancing losses are of one, and expert parallelism balances its ranks together."""
    return plan.data * plan.shard * plan.microbatches * (1 if kind == "experts" else plan.expert)


def differences(found: tuple, expected: tuple) -> tuple[float, float]:
    """The largest of losses and of weights, relative as told above; both 0 only where all bits are the same."""
    losses = max(abs(a - b) / abs(b) for a, b in zip(found[0], expected[0], strict=True))
    assert found[1].keys() == expected[1].keys()
    return losses, max(relative(found[1][name], tensor) for name, tensor in expected[1].items())


def relative(found: Tensor, expected: Tensor) -> float:
    if torch.equal(found, expected):
        return 0.0
    return max(torch.finfo(found.dtype).tiny, float((found - expected).norm() / expected.norm()))


def check(engine: str, size: int, cases: list[tuple[str, str]], steps: int, dtype: torch.dtype) -> None:
    results = run_ranks(train_all, size, engine, cases, steps, dtype, timeout=600.0)[0]
    wrong = {}
    for (text, kind), found in zip(cases, results, strict=True):
        plan = ParallelPlan.parse(text)
        expected = oracle(kind, parts_of(plan, kind), steps, dtype)
        assert steps < 200 or expected[0][-1] < 0.8 * expected[0][0], f"{kind}: nothing was learnt"
        same_bits = engine == "groundup" and plan.data == plan.size
        allowed = 0.0 if same_bits else TOLERANCE[dtype]
        if max(off := differences(found, expected)) > allowed:
            wrong[f"{text}, {kind}"] = off
    assert not wrong


@pytest.mark.parametrize("engine", TESTED)
def test_every_plan_trains_as_one_process_does(engine):
    """A few steps of all, which is where a mistake shows."""
    check(engine, 2, singles(2), FEW_STEPS, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("engine", TESTED)
def test_pairs_of_strategies(engine):
    check(engine, 4, PAIRS, FEW_STEPS, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype"), [(2, torch.float32), (4, torch.float64)], ids=["2-fp32", "4-fp64"])
@pytest.mark.parametrize("engine", TESTED)
def test_two_hundred_steps(engine, size, dtype):
    start = TESTED.index(engine) * len(LONG[size]) // 2  # the engines try different ones
    check(engine, size, [*LONG[size][start:], *LONG[size][:start]][:: one_in(8)], 200, dtype)


def show(engine: str, size: int, steps: int, dtype: torch.dtype) -> None:
    """Every plan's differences, as in `check`."""
    for text, kind in [*singles(size), *(PAIRS if size == 4 else [])]:
        (found,) = run_ranks(train_all, size, engine, [(text, kind)], steps, dtype, timeout=900.0)[0]
        expected = oracle(kind, parts_of(ParallelPlan.parse(text), kind), steps, dtype)
        losses, weights = differences(found, expected)
        print(f"{engine} {size} {text:55} {kind:8} losses {losses:.1e} weights {weights:.1e}", flush=True)


if __name__ == "__main__":
    show(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4]))
