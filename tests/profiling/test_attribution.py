"""Whose time it was: traces made by hand, where every microsecond is known."""

from collections.abc import Iterable

import pytest

from groundup.profiling.attribution import Spent, quiet, spent
from groundup.profiling.groups import ATTENTION, HEAD, NORM, OPTIMIZER, OTHER
from groundup.profiling.scopes import PREFIX, STEP
from groundup.profiling.timeline import timeline

BACKWARD = "autograd::engine::evaluate_function: "


def event(name, start, duration, *, number=None, forward_thread=0, tid=1, cat="cpu_op", **arguments):
    if number is not None:
        arguments |= {"Sequence number": number, "Fwd thread id": forward_thread}
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "tid": tid, "args": arguments}


def mark(group, start, duration):
    return event(PREFIX + group, start, duration, cat="user_annotation")


def step(start, duration):
    return event(STEP, start, duration, cat="user_annotation")


def one(events: Iterable) -> Spent:
    (only,) = spent(events)
    return only


def microseconds(total: Spent) -> dict[str, int]:
    return {group: round(seconds * 1e6) for group, seconds in total.groups.items() if seconds}


def test_the_innermost_mark_owns_the_time():
    total = one([step(0, 100), mark(ATTENTION, 10, 60), mark(NORM, 20, 15), event("aten::mul", 22, 10)])
    assert microseconds(total) == {ATTENTION: 45, NORM: 15, OTHER: 40}
    assert round(total.operations["aten::mul", NORM] * 1e6) == 10
    assert round(total.interpreter * 1e6) == 90


def test_all_groups_together_are_the_steps():
    events = [step(0, 100), mark(HEAD, 0, 100), step(200, 50), mark(NORM, 210, 20), event("aten::mm", 400, 77)]
    first, second = spent(events)
    assert (first.seconds, second.seconds) == pytest.approx((100e-6, 50e-6))
    for total in (first, second):
        assert sum(total.groups.values()) == pytest.approx(total.seconds)


def test_a_backward_node_belongs_to_the_forward_operation_of_its_number():
    total = one(
        [
            step(0, 100),
            mark(NORM, 0, 10),
            event("aten::mul", 1, 5, number=7),
            mark(HEAD, 10, 10),
            event("aten::mm", 11, 5, number=8),
            event(BACKWARD + "MmBackward0", 30, 20, number=8, forward_thread=1),
            event("aten::mm", 31, 10),
            event(BACKWARD + "MulBackward0", 50, 8, number=7, forward_thread=1),
        ]
    )
    assert microseconds(total) == {NORM: 18, HEAD: 30, OTHER: 52}


def test_of_operations_with_one_number_the_last_made_the_node():
    # A view without a gradient bears the number of the next node, which an operation elsewhere then makes.
    total = one(
        [
            step(0, 100),
            mark(NORM, 0, 10),
            event("aten::arange", 1, 5, number=7),
            mark(HEAD, 10, 10),
            event("aten::mm", 11, 5, number=7),
            event(BACKWARD + "MmBackward0", 30, 20, number=7, forward_thread=1),
        ]
    )
    assert microseconds(total)[HEAD] == 30 and microseconds(total)[NORM] == 10


def test_gradients_are_added_up_for_the_group_that_made_them():
    total = one(
        [
            step(0, 100),
            mark(NORM, 0, 10),
            event("aten::mul", 1, 5, number=7),
            event(BACKWARD + "MulBackward0", 30, 20, number=7, forward_thread=1),
            event(BACKWARD + "torch::autograd::AccumulateGrad", 50, 5),
        ]
    )
    assert microseconds(total) == {NORM: 35, OTHER: 65}


def test_clipping_after_the_backward_pass_is_the_optimizers():
    total = one(
        [
            step(0, 100),
            event("aten::zeros", 0, 3),
            event(BACKWARD + "MulBackward0", 30, 20, number=7, forward_thread=1),
            event("aten::norm", 60, 5),
            mark(OPTIMIZER, 70, 10),
        ]
    )
    assert microseconds(total)[OPTIMIZER] == 15


def test_kernels_on_a_device_go_to_who_launched_them_and_the_rest_is_waiting():
    total = one(
        [
            step(0, 100),
            mark(NORM, 0, 10),
            event("aten::mul", 1, 5, **{"External id": 3}),
            event("fused_mul", 40, 30, tid=7, cat="kernel", **{"External id": 3}),
            event("of another step", 400, 30, tid=7, cat="kernel", **{"External id": 99}),
        ]
    )
    assert microseconds(total) == {NORM: 30, OTHER: 70}
    assert round(total.waiting * 1e6) == 70


def test_the_quiet_half_is_the_faster_one():
    events = [e for i, length in enumerate((50, 400, 60)) for e in (step(1000 * i, length), mark(HEAD, 1000 * i, 40))]
    half = quiet(spent(events))
    assert half.steps == 2 and half.seconds == pytest.approx(110e-6)
    assert half.groups[HEAD] == pytest.approx(80e-6)


def test_memory_is_added_up_from_the_beginning_of_the_step():
    def memory(now, amount, device=0):
        arguments = {"Bytes": amount, "Device Type": device}
        return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": now, "tid": 1, "args": arguments}

    events = [memory(1, 999), step(10, 100), mark(NORM, 20, 10), memory(25, 100), memory(40, 50), memory(60, -120),
              memory(70, 7, device=1)]  # fmt: skip
    found = timeline(events, "cpu", resident_bytes=1000)
    assert [(round(t * 1e6), n, group) for t, n, group in found.points] == [
        (15, 100, NORM),
        (30, 150, OTHER),
        (50, 30, OTHER),
    ]
    assert found.peak[1] == 150 and found.peak_bytes == 1150
