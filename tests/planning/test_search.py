"""Which plans are tried, how they are ranked, and why one loses; memory by the ledger of one process."""

from dataclasses import replace

import pytest
import torch

from groundup.accounting.memory import training_memory
from groundup.parallel.plan import AXES, ParallelPlan
from groundup.planning.memory import rank_memory
from groundup.planning.search import divisions, given, ranked, why
from groundup.planning.units import check
from tests.planning.small import EXPERTS, MODEL, hardware, job


def memory(text, rows=2, dtype=torch.float32, **changes):
    return rank_memory(ParallelPlan.parse(text), rows, job(dtype=dtype, **changes))


def test_one_rank_is_the_ledger_of_one_process():
    for dtype in (torch.float32, torch.bfloat16):
        for text, recompute in (("", False), ("recompute=true", True)):
            own, ledger = memory(text, dtype=dtype), training_memory(MODEL, 2, 128, dtype, recompute=recompute)
            assert own.peak == pytest.approx(ledger.peak, rel=0.02)
            assert (own.parameters, own.optimizer) == (ledger.parameters, ledger.optimizer)


def test_every_axis_divides_what_it_should():
    whole = memory("")
    shard, tensor, zero1, zero2 = (memory(text) for text in ("shard=4", "tensor=4", "data=4 zero=1", "data=4 zero=2"))
    assert shard.parameters == whole.parameters // 4 and shard.gradients == whole.gradients // 4 and shard.gathered > 0
    assert whole.parameters // 4 < tensor.parameters < whole.parameters // 2  # embedding and head stay whole
    assert (zero1.optimizer, zero1.gradients) == (whole.optimizer // 4, whole.gradients)
    assert (zero2.optimizer, zero2.gradients) == (whole.optimizer // 4, whole.gradients // 4)
    assert memory("context=4").activations == pytest.approx(whole.activations / 4, rel=0.01)
    assert memory("tensor=4 sequence=true").activations < tensor.activations < whole.activations
    assert memory("recompute=true").activations < whole.activations / 2


def test_a_pipeline_keeps_as_many_micro_batches_as_are_on_their_way():
    one, four = memory("pipeline=4 schedule=gpipe microbatches=8"), memory("pipeline=4 microbatches=8")
    layer = (memory("", model=replace(MODEL, num_layers=16)).activations - memory("").activations) / 8
    assert four.activations == pytest.approx(4 * 2 * layer, rel=0.05)  # 4 micro-batches of the first stage's 2 layers
    assert one.activations == pytest.approx(2 * four.activations, rel=0.05)
    assert four.parameters < memory("").parameters / 3


def test_all_ways_to_divide_are_tried_and_no_other():
    found = list(divisions(job(), 8))
    assert len(found) == len(set(found))
    for axes in found:
        plan = ParallelPlan(**dict(zip(AXES, axes, strict=True)))
        assert plan.size == 8
        check(plan, job())
    names = {name for axes in found for name, n in zip(AXES, axes, strict=True) if n == 8}
    assert names == {"pipeline", "data", "shard", "context"}  # 4 heads, and no experts
    assert any(axes[AXES.index("expert")] == 8 for axes in divisions(job(model=EXPERTS), 8))
    assert not any(axes[AXES.index("tensor")] > 1 for axes in divisions(job(model=EXPERTS), 8))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_ranking_is_by_seconds_and_what_does_not_fit_comes_last(count):
    found = ranked(job(rows=12), hardware(memory=4e6, bandwidth=1e9), count)
    assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)
    seconds = [each.seconds for each in found if each.fits]
    assert seconds == sorted(seconds) and all(each.memory.peak > 4e6 for each in found if not each.fits)
    for each in found:
        assert ParallelPlan.parse(each.plan.text) == each.plan and each.plan.size == count
        assert (why(each, found[0], hardware(memory=4e6)) == "") == (each is found[0] and each.fits)


def test_slow_links_and_little_memory_change_the_choice():
    fast = ranked(job(), hardware(inside=hardware().network.inside.__class__(0.0, 1e15)), 4)[0]
    assert fast.plan.pipeline == 1 and not fast.plan.recompute
    tight = ranked(job(), hardware(memory=3.6e6), 4)[0]
    assert tight.memory.peak <= 3.6e6 < fast.memory.peak
    assert tight.plan.shard > 1 or tight.plan.recompute or tight.plan.pipeline > 1


def test_why_names_what_costs_most():
    found = ranked(job(), hardware(bandwidth=1e9), 4)
    said = {why(each, found[0], hardware()).partition(" +")[0] for each in found[1:]}
    assert any(words.startswith("messages of ") for words in said) and all(said)


def test_a_plan_that_was_asked_for():
    asked = given(ParallelPlan.parse("data=2 pipeline=2 microbatches=4"), job(), hardware())
    assert (asked.rows, asked.passes) == (2, 4)
    with pytest.raises(ValueError, match="tensor=8: heads or channels cannot be divided so"):
        given(ParallelPlan.parse("tensor=8 sequence=true"), job(), hardware())


def test_rows_that_nobody_can_divide():
    with pytest.raises(ValueError, match=r"16 rows in a step, .* over 11 ranks"):
        ranked(job(), hardware(), 11)
