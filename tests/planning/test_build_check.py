"""One rank of a thousand, among others that are not there: it builds, and holds what the ledger says."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from groundup import presets
from groundup.parallel.plan import ParallelPlan
from groundup.planning.build_check import build
from groundup.planning.job import Job
from groundup.planning.memory import rank_memory
from tests.planning.small import EXPERTS, MODEL


@pytest.mark.parametrize(
    "text",
    ["", "data=64", "tensor=4", "shard=16", "pipeline=4 microbatches=4", "data=2 shard=4 tensor=2 sequence=true",
     "pipeline=2 microbatches=4 shard=8 tensor=4"],
)  # fmt: skip
def test_a_rank_holds_what_the_ledger_says(text):
    plan = ParallelPlan.parse(text)
    rows = plan.data * plan.shard * max(4, plan.microbatches)
    ledger = rank_memory(plan, rows // (plan.data * plan.shard * plan.microbatches), Job(MODEL, rows, torch.float32))
    held = max(build(plan, MODEL, rank).parameters for rank in (0, plan.size - 1))
    assert 4 * held == pytest.approx(ledger.parameters, rel=0.02)
    assert not dist.is_initialized()


def test_experts_are_dealt():
    plan = ParallelPlan.parse("expert=8")
    ledger = rank_memory(plan, 1, Job(EXPERTS, 8))
    assert 4 * build(plan, EXPERTS, 5).parameters == pytest.approx(ledger.parameters, rel=1e-6)


def test_stages_of_a_rank_are_not_one_model():
    with pytest.raises(ValueError, match="check it with chunks=1"):
        build(ParallelPlan.parse("pipeline=2 schedule=interleaved chunks=2 microbatches=2"), MODEL)


PROGRAM = """
import json, resource
from groundup import presets
from groundup.parallel.plan import ParallelPlan
from groundup.planning.build_check import build
plan = ParallelPlan.parse("shard=128 tensor=8 sequence=true recompute=true")
found = build(plan, presets.published("llama-3-70b"), 517)
print(json.dumps([found.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
def test_seventy_billion_parameters_on_1024_ranks_build_and_fit():
    plan = ParallelPlan.parse("shard=128 tensor=8 sequence=true recompute=true")
    model = presets.published("llama-3-70b")
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    parameters, resident = json.loads(ended.stdout)
    ledger = rank_memory(plan, 1, Job(model, 128))
    assert 4 * parameters == pytest.approx(ledger.parameters, rel=0.01)
    assert ledger.peak < 80e9
    assert resident < 2 * 2**30
