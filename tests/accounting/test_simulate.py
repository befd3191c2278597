"""Live bytes: a network worked by hand, and single operations against torch's allocator."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from groundup.accounting.simulate import BACKWARD, FORWARD, GRADIENTS, KINDS, PARAMETERS, LiveBytes


def test_two_layers_by_hand():
    """y = tanh(x A^T) B^T of 8 rows, widths 4 -> 16 -> 2, and the sum of y as a loss. Everything is 4 bytes long."""
    a, b, rows = 16 * 4, 2 * 16, 8
    live = LiveBytes()
    with FakeTensorMode():
        first, second = torch.nn.Linear(4, 16, bias=False), torch.nn.Linear(16, 2, bias=False)
        live.adopt([first.weight, second.weight], PARAMETERS)
        x = torch.empty(rows, 4)
        live.adopt([x], "batch")
        with live:
            live.phase = FORWARD
            loss = second(first(x).tanh()).sum()
            live.phase = BACKWARD
            loss.backward()
            live.adopt([p.grad for p in (first.weight, second.weight) if p.grad is not None], GRADIENTS)
            del loss
    found = live.result()
    steady = 4 * (a + b + rows * 4)
    hidden, out = rows * 16, rows * 2
    assert found.steady_bytes == steady
    # While tanh runs, its argument is alive beside its result; then it dies, for tanh' is found from the result.
    assert found.phase_peaks[FORWARD] == steady + 4 * (2 * hidden)
    # The backward pass: the loss and its gradient of one number each; of y only an expanded one. B's gradient comes
    # first, then that of the hidden layer, then tanh's own: hidden, two gradients of its size, B's gradient.
    assert found.phase_peaks[BACKWARD] == steady + 4 * (2 + b + 3 * hidden)
    assert found.peak_bytes == found.phase_peaks[BACKWARD] == sum(found.held.values()) and set(found.held) == set(KINDS)
    assert found.held["parameters"] == 4 * (a + b) and found.held["gradients"] == 4 * b
    assert found.held["activations"] == 4 * (hidden + 1)
    assert found.peak.operation == "aten.tanh_backward.default" and found.peak.made_bytes == 4 * hidden
    assert out < hidden  # or the second layer's output would decide


def allocated(function, *tensors, tmp_path):
    """The most that the CPU's allocator gave out during a call."""
    function(*tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(*tensors)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["name"] == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    return most


def simulated(function, *tensors):
    live = LiveBytes()
    with FakeTensorMode():
        stand_ins = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in tensors]
        live.adopt(stand_ins, PARAMETERS)
        live.phase = FORWARD
        with live:
            function(*stand_ins)
    found = live.result()
    return found.peak_bytes - found.steady_bytes


def numbers(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda x, y: x.add_(y), (numbers(50, 90), numbers(50, 90, dtype=BF16))),
        (lambda x, y: x.add_(y), (numbers(50, 90, dtype=BF16), numbers(50, 90))),
        (lambda x, y: x * y, (numbers(50, 90, dtype=BF16), numbers(90))),
        (lambda x, y: x - y, (numbers(50, 90), numbers(50, 90))),
        (lambda x, y: x / y, (numbers(50, 90), numbers(50, 90) > 0)),
        (lambda x, y: x < y, (numbers(50, 90, dtype=BF16), numbers(50, 90))),
        (lambda x, y: torch.where(x > 0, x, y), (numbers(50, 90), numbers(50, 90, dtype=BF16))),
        (lambda x: x.sum(-1, dtype=torch.float32), (numbers(50, 90, dtype=BF16),)),
        (lambda x: x.mean(-1), (numbers(50, 90, dtype=BF16),)),
        (lambda x: x.logsumexp(-1), (numbers(50, 90),)),
        (lambda x: x.softmax(-1), (numbers(50, 90, dtype=BF16),)),
        (lambda x, y: x @ y.T, (numbers(50, 90), numbers(70, 90))),
    ],
)
def test_what_operations_allocate_within_themselves(function, tensors, tmp_path):
    assert simulated(function, *tensors) == allocated(function, *tensors, tmp_path=tmp_path)


def test_sums_of_gradients_are_made_in_place_as_autograd_does(tmp_path):
    """x is read twice, so two gradients of it are joined; no third is made of them."""

    def step(x):
        leaf = x.detach().requires_grad_()
        ((leaf * 2.0).sum() + (leaf * 3.0).sum()).backward()

    measured = allocated(step, numbers(1000), tmp_path=tmp_path)
    assert simulated(step, numbers(1000)) == pytest.approx(measured, abs=64)  # a scalar or two


def test_a_value_that_nobody_knows_does_not_stop_the_code():
    live = LiveBytes()
    with FakeTensorMode(), live:
        x = torch.ones(3)
        assert x.sum().item() == 1.0 and not bool((x > 0).any()) and int(x.argmax()) == 0
