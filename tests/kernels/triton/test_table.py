"""Kernels are used by default where they were found right and not slower on the device at hand."""

import contextlib
import json
import logging
import types

import pytest
import torch

from groundup import kernels
from groundup.kernels import _dispatch, _table, backend, gated, newton_schulz, rmsnorm
from groundup.kernels.examples import EXAMPLES, Draw, Size, outcome
from groundup.kernels.triton import glu, muon, norm
from groundup.kernels.triton._support import INTERPRETED, blocks_key, trying, tuned

pytest.importorskip("triton")
X, WEIGHT = torch.ones(2, 8), torch.full((8,), 2.0)
CPU = torch.device("cpu")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table; and the CPU takes the interpreter for its GPU."""
    if not INTERPRETED:
        pytest.skip("kernels are not interpreted here, and the CPU has none")
    made = _table.Table(tmp_path / "table.json", {"device": "a test"})
    monkeypatch.setattr(_table, "table_of", lambda device: made)
    monkeypatch.setitem(_dispatch.DEFAULT, "cpu", "triton")
    monkeypatch.setattr(_dispatch, "_said", set())
    return made


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel ran, by itself."""
    counted = []
    original = norm.rmsnorm
    monkeypatch.setattr(norm, "rmsnorm", lambda *args: counted.append(args) or original(*args))
    return counted


def key():
    return _table.key_of("rmsnorm", torch.float32, norm)


def test_the_first_call_tries_the_kernel_and_the_answer_is_kept(table, calls):
    y = rmsnorm(X, WEIGHT)
    assert len(calls) == 2  # the trial, and the call
    torch.testing.assert_close(y, rmsnorm.reference(X, WEIGHT))
    rmsnorm(X, WEIGHT)
    assert len(calls) == 3
    again = _table.Table(table.path, table.facts)
    assert again.verdicts == {key(): None}


def test_a_kernel_that_is_wrong_here_is_not_used_and_that_is_said(table, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(norm, "rmsnorm", lambda x, weight, eps=1e-5: 1.1 * rmsnorm.reference(x, weight, eps))
    torch.testing.assert_close(rmsnorm(X, WEIGHT), rmsnorm.reference(X, WEIGHT))
    assert "rmsnorm: it gave something else here" in caplog.text


@pytest.mark.parametrize("fault", [RuntimeError("no such instruction\nsecond line"), OSError("")])
def test_a_kernel_that_fails_here_is_not_used(table, monkeypatch, caplog, fault):
    caplog.set_level(logging.INFO)

    def fails(*args):
        raise fault

    monkeypatch.setattr(norm, "rmsnorm", fails)
    torch.testing.assert_close(rmsnorm(X, WEIGHT), rmsnorm.reference(X, WEIGHT))
    assert f"it failed here: {type(fault).__name__}" in caplog.text and "second line" not in caplog.text


def test_a_gradient_that_is_wrong_counts_too(table):
    class Stopped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *upstream):
            return torch.zeros_like(upstream[0])

    twin = types.ModuleType("norm")
    twin.rmsnorm = lambda x, w, eps=1e-5: rmsnorm.reference(Stopped.apply(x), w, eps)
    for mode in (contextlib.nullcontext, torch.no_grad, torch.inference_mode):  # whatever the first caller is in
        with mode():
            said = _table.probe("rmsnorm", rmsnorm.reference, twin, CPU, torch.float32)
        assert said is not None and "something else" in said


def test_a_request_by_name_asks_no_table(table, calls):
    table.verdicts[key()] = "it was wrong"
    with backend("triton"):
        rmsnorm(X, WEIGHT)
    assert len(calls) == 1
    rmsnorm(X, WEIGHT)
    assert len(calls) == 1


def test_a_kernel_that_was_measured_slower_is_not_used_at_that_size(table, calls):
    table.verdicts[key()] = None
    table.add_speed(key(), 16, 0.8, None)
    table.add_speed(key(), 1600, 1.2, None)
    rmsnorm(X, WEIGHT)
    assert len(calls) == 0
    rmsnorm(torch.ones(200, 8), WEIGHT)
    assert len(calls) == 1
    table.save()
    assert _table.Table(table.path, {}).speed(key(), 1600) == [1.2, 1.2]


def test_what_the_reference_does_well_waits_for_a_measurement(table):
    x = torch.eye(3)[None]
    assert torch.equal(newton_schulz(x, (1.0, 0.0, 0.0)), x)
    objects = _table.objection("newton_schulz", newton_schulz.reference, muon, CPU, torch.float16, 9, False)
    assert objects is not None and "cuBLAS" in objects


@pytest.mark.parametrize(("speed", "used"), [(None, False), (1.05, False), (1.2, True)])
def test_in_a_compiled_graph_it_must_win_by_more(table, calls, speed, used):
    """There the compiler fuses a norm with its neighbours."""
    table.verdicts[key()] = None
    if speed:
        table.add_speed(key(), 16, 2.0, speed)
    why = _table.objection("rmsnorm", rmsnorm.reference, norm, CPU, torch.float32, None, True)
    assert (why is None) == used
    assert _table.objection("rmsnorm", rmsnorm.reference, norm, CPU, torch.float32, 16, False) is None


def test_the_question_can_be_asked_while_a_graph_is_traced(table, monkeypatch):
    """Nothing of it becomes part of the graph: not the trial, and not the reading of a file."""
    monkeypatch.setattr(_table, "FUSED_BY_COMPILER", ())
    monkeypatch.setattr(norm, "rmsnorm", lambda x, weight, eps=1e-5: 1.1 * rmsnorm.reference(x, weight, eps))
    compiled = torch.compile(lambda x: rmsnorm(x * 2, WEIGHT), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), rmsnorm.reference(2 * X, WEIGHT))
    assert "something else" in table.verdicts[key()]


def test_what_is_not_used_anyway_is_not_tried(table, calls):
    compiled = torch.compile(lambda x: rmsnorm(x * 2, WEIGHT), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), rmsnorm.reference(2 * X, WEIGHT))
    newton_schulz(torch.eye(3)[None], (1.0, 0.0, 0.0))
    assert calls == [] and table.verdicts == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verdicts": {}}'])
def test_a_broken_file_is_an_empty_table(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    made = _table.Table(path, {})
    assert made.verdicts == {} and made.speed("rmsnorm", 3) is None
    made.save()
    assert json.loads(path.read_text("utf-8"))["verdicts"] == {}


def test_the_tables_of_devices_and_code_are_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))
    before = _table.table_of.__wrapped__(CPU).path
    monkeypatch.setattr(_table, "describe", lambda device: "another device")
    assert before.parent == tmp_path / "kernels" and before != _table.table_of.__wrapped__(CPU).path
    assert _table.key_of("x", torch.float32, norm) != _table.key_of("x", torch.float32, glu)


def test_apart_by_hand():
    a = torch.tensor([1.0, 2.0, 4.0])
    assert _table.apart(torch.tensor([1.0, 2.0, 5.0]), a) == 0.25
    assert _table.apart(torch.tensor([1.0, float("nan"), 4.0]), a) == float("inf")
    assert _table.apart(torch.zeros(2), a) == float("inf")
    assert _table.apart(torch.zeros(0), torch.zeros(0)) == 0.0


def test_blocks_that_are_tried_or_known_take_the_place_of_the_default():
    default = {"BLOCK": 64, "warps": 4}
    assert tuned("gated", (torch.float32,), default) == default
    with trying("gated", {"warps": 2}):
        assert tuned("gated", (torch.float32,), default) == {"BLOCK": 64, "warps": 2}
    assert blocks_key("gated", (torch.bfloat16, 4096)) == "gated bfloat16 4096"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_gives_the_same_twice(name):
    op = getattr(kernels, name)
    small = Size(batch=2, seq=9, d_model=16, d_ff=24, heads=2, kv_heads=1, d_head=8, vocab=33, experts=3)
    for build in EXAMPLES[name]:
        one, two = (outcome(op.reference, build(Draw("cpu", torch.float32), small)) for _ in range(2))
        assert one and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        one = [t.double() for t in one]  # there is no maximum of float8
        assert any(bool(t.abs().max() > 0) for t in one)
        leaves = build(Draw("cpu", torch.float32), small).leaves()
        assert len(one) >= len(leaves) and all(t.isfinite().all() for t in one)


def test_every_kernel_has_an_example(repository):
    """Without one it would be trusted untried."""
    folder = repository / "src" / "groundup" / "kernels" / "triton"
    twins = {path.stem for path in folder.glob("[!_]*.py")}
    ops = [name for name in dir(kernels) if hasattr(getattr(kernels, name), "reference")]
    with_twin = [n for n in ops if getattr(kernels, n).reference.__module__.rpartition(".")[2] in twins]
    assert "rmsnorm" in with_twin
    missing = []
    for name in with_twin:
        twin = _dispatch.find_twin(getattr(kernels, name).reference.__module__, "triton")
        if hasattr(twin, name) and name not in EXAMPLES:
            missing.append(name)
    assert missing == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kernel_is_found_right_on_this_gpu(name):
    reference = getattr(kernels, name).reference
    twin = _dispatch.find_twin(reference.__module__, "triton")
    if not hasattr(twin, name):
        pytest.skip("no Triton kernel")
    for dtype in _table.TOLERANCE:
        assert _table.probe(name, reference, twin, torch.device("cuda"), dtype) is None, dtype


def test_gated_by_default_is_the_kernel_s(table):
    gate, up = torch.randn(2, 3, 8)
    torch.testing.assert_close(gated(gate, up), gated.reference(gate, up))
    assert table.verdicts == {_table.key_of("gated", torch.float32, glu): None}
