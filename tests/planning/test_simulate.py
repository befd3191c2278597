"""Events by hand, against the pipeline's own simulator, and against the closed form."""

import itertools
import time
from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.parallel.plan import ParallelPlan
from groundup.parallel.schedules import bubble_fraction, schedule, simulate
from groundup.planning.events import Task, run
from groundup.planning.hardware import Hardware, Speed
from groundup.planning.job import Job
from groundup.planning.links import Link, Network
from groundup.planning.predict import predict
from groundup.planning.simulate import covered, simulate_step
from groundup.planning.units import Costs
from tests.planning.small import FREE, hardware, job


def times(*tasks):
    return [(done.start, done.end) for done in run([Task(*task) for task in tasks])]


def test_a_stream_does_one_thing_at_a_time_and_needs_come_first():
    assert times(("a", "", "", 2.0), ("b", "", "", 1.0, (0,)), ("a", "", "", 3.0), ("b", "", "", 1.0, (1, 2))) == [
        (0, 2), (2, 3), (2, 5), (5, 6),
    ]  # fmt: skip


def test_who_comes_first_is_served_first():
    assert times(("a", "", "", 5.0), ("b", "", "", 1.0), ("link", "", "", 4.0, (0,)), ("link", "", "", 4.0, (1,))) == [
        (0, 5), (0, 1), (5, 9), (1, 5),
    ]  # fmt: skip


def test_a_crowd_shares_its_places():
    tasks = [Task(str(i), "work", "", 2.0) for i in range(3)] + [Task("3", "message", "", 2.0)]
    assert [done.start for done in run(tasks, ("work",), 2)] == [0, 0, 2, 0]


def test_stages_that_share_cores_have_no_bubble_and_take_as_long_as_their_work():
    model = presets.llama(vocab_size=2, d_model=64, num_layers=8, num_heads=4, d_head=16, context_length=128)
    plan, alone = ParallelPlan.parse("pipeline=4 microbatches=8"), hardware(inside=FREE)
    apart = simulate_step(plan, 2, job(model=model), alone)
    shared = simulate_step(plan, 2, job(model=model), replace(alone, cores=2))
    work = apart.lanes[0].busy  # of one of four ranks, with all busy; on two cores the four take no longer
    assert work * (1 - 1e-9) <= shared.seconds < apart.seconds
    assert predict(plan, 2, job(model=model), replace(alone, cores=2)).seconds == pytest.approx(shared.seconds, rel=0.1)


def test_tasks_of_no_length_take_no_time():
    assert times(("a", "", "", 0.0), ("a", "", "", 0.0, (0,)), ("a", "", "", 1.0, (1,))) == [(0, 0), (0, 0), (0, 1)]


def test_a_circle_and_a_stranger_are_refused():
    with pytest.raises(ValueError, match="tasks wait for each other, such as one on a"):
        run([Task("a", "", "one", 1.0, (1,)), Task("b", "", "two", 1.0, (0,))])
    with pytest.raises(ValueError, match="one on a needs task 4 of 1"):
        run([Task("a", "", "one", 1.0, (4,))])


@pytest.mark.parametrize(("name", "chunks"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2)])
@pytest.mark.parametrize("bandwidth", [float("inf"), 1e7])
def test_a_pipeline_alone_is_that_of_the_schedules(name, chunks, bandwidth):
    plan = ParallelPlan(pipeline=4, schedule=name, microbatches=8, chunks=chunks)
    machine = hardware(inside=Link(0.0, bandwidth))
    costs = Costs(plan, 2, job(), machine)
    forward = [sum(unit.forward * n for unit, n in chunk) for chunk in costs.chunks()]
    schedules = [schedule(name, 4, 8, rank, chunks) for rank in range(4)]
    other = simulate(schedules, forward, [2 * seconds for seconds in forward], costs.send)
    found = simulate_step(plan, 2, job(), machine)
    assert found.seconds == pytest.approx(other.seconds, rel=1e-9)
    assert found.bubble + found.exposed == pytest.approx(other.bubble, rel=1e-9)


def test_equal_stages_have_the_bubble_of_the_formula():
    model = presets.llama(vocab_size=2, d_model=64, num_layers=8, num_heads=4, d_head=16, context_length=128)
    found = simulate_step(ParallelPlan.parse("pipeline=4 microbatches=8"), 2, job(model=model), hardware(inside=FREE))
    assert found.bubble == pytest.approx(bubble_fraction(4, 8), rel=0.01)


PLANS = (
    "data=4", "data=4 zero=1", "shard=4", "tensor=4", "tensor=2 recompute=true", "context=4", "context=2 method=gather",
    "data=2 shard=2", "shard=2 tensor=2", "data=2 tensor=2 sequence=true", "pipeline=2 microbatches=8",
    "pipeline=4 microbatches=8", "data=2 pipeline=2 microbatches=4", "tensor=2 pipeline=2 microbatches=8",
    "pipeline=2 schedule=interleaved chunks=2 microbatches=8", "shard=2 pipeline=2 microbatches=4 recompute=true",
)  # fmt: skip


@pytest.mark.parametrize("text", PLANS)
def test_the_closed_form_says_the_same_where_nothing_overlaps(text):
    plan, machine = (
        ParallelPlan.parse(text),
        hardware(flops=2e10, overlaps=False, bandwidth=1e9, inside=Link(1e-5, 1e9)),
    )
    assert predict(plan, 2, job(), machine).seconds == pytest.approx(
        simulate_step(plan, 2, job(), machine).seconds, rel=0.03
    )


@pytest.mark.parametrize("text", PLANS)
def test_and_nearly_the_same_where_messages_are_hidden(text):
    plan, machine = ParallelPlan.parse(text), hardware(flops=2e10, bandwidth=1e9, inside=Link(1e-5, 1e9))
    assert predict(plan, 2, job(), machine).seconds == pytest.approx(
        simulate_step(plan, 2, job(), machine).seconds, rel=0.1
    )


@pytest.mark.parametrize("text", PLANS)
def test_overlap_never_costs_and_a_shared_link_never_saves(text):
    plan, alone = ParallelPlan.parse(text), hardware(flops=2e10, inside=FREE)
    beside, after = (hardware(flops=2e10, inside=Link(1e-5, 1e9), overlaps=overlaps) for overlaps in (True, False))
    free, hidden, shared, seen = (
        simulate_step(plan, 2, job(), machine, shared_link=link).seconds
        for machine, link in ((alone, False), (beside, False), (beside, True), (after, False))
    )
    assert free <= hidden * (1 + 1e-9) and hidden <= shared * (1 + 1e-9) and shared <= seen * (1 + 1e-9)


def test_no_stream_is_in_two_places_and_shares_add_up():
    found = simulate_step(ParallelPlan.parse("shard=2 pipeline=2 microbatches=4 recompute=true"), 2, job(), hardware())
    for lane in found.lanes:
        for stream in {done.task.stream for done in lane.done}:
            spans = sorted((done.start, done.end) for done in lane.done if done.task.stream == stream)
            assert all(before[1] <= after[0] + 1e-12 for before, after in itertools.pairwise(spans))
    busy = sum(lane.busy for lane in found.lanes) / len(found.lanes) / found.seconds
    assert busy + found.exposed + found.bubble == pytest.approx(1)
    assert found.lanes[1].name == "ranks 2 to 3"


def test_thousands_of_ranks_are_as_many_lanes_as_there_are_stages():
    machine = Hardware("made up", Speed(4e14), 8e10, 3e12, Network(Link(5e-6, 4.5e11), 8, Link(1e-5, 5e10)))
    plan = ParallelPlan.parse("data=32 tensor=8 pipeline=16 microbatches=64")
    begun = time.process_time()
    found = simulate_step(plan, 1, Job(presets.published("llama-3-70b"), 2048, torch.bfloat16), machine)
    assert plan.size == 4096 and len(found.lanes) == 16 and found.lanes[15].first == 3840
    assert time.process_time() - begun < 30  # seconds; it takes about two
    assert 0 < found.bubble < 1


def test_what_spans_cover():
    assert covered([]) == 0
    assert covered([(0, 1), (0.5, 2), (3, 4), (3.2, 3.5)]) == 3
