"""Choosing blocks, and what a benchmark leaves in the table of a device."""

import pytest
import torch

import groundup.kernels
from groundup.bench import kernel_tuning, kernels
from groundup.bench.kernel_tuning import tune
from groundup.bench.kernels import SIZES, Case, remember
from groundup.kernels import _table, gated, rmsnorm
from groundup.kernels._dispatch import find_twin
from groundup.kernels.examples import EXAMPLES, Draw, Size, outcome
from groundup.kernels.triton import (
    _support,
    adamw,
    attention,
    convolution,
    cross_entropy,
    delta,
    glu,
    grouped_matmul,
    muon,
    norm,
    quantize,
    rope,
    scan,
)
from groundup.kernels.triton._support import INTERPRETED, tuned

pytest.importorskip("triton")
CPU = torch.device("cpu")
TINY = SIZES["tiny"]["tiny"]
SMALL = Size(batch=1, heads=2, kv_heads=1, experts=2, d_ff=129, vocab=131)  # still with a chunk that is not full


@pytest.fixture
def table(tmp_path, monkeypatch):
    if not INTERPRETED:
        pytest.skip("on a GPU these are measured, and this table is made up")
    made = _table.Table(tmp_path / "table.json", {})
    for module in (_table, kernels, kernel_tuning):
        monkeypatch.setattr(module, "table_of", lambda device: made)
    return made


def example():
    return EXAMPLES["gated"][0](Draw("cpu", torch.float32), TINY)


def seconds_by_block(monkeypatch, by_block):
    """A clock that knows what each block takes."""
    default = {"BLOCK": 0}

    def seconds(op, example, device, repeats):
        return by_block[tuned("gated", (), default)["BLOCK"]]

    monkeypatch.setattr(kernel_tuning, "_seconds", seconds)


def test_the_fastest_block_is_remembered(table, monkeypatch):
    monkeypatch.setattr(glu, "CANDIDATES", {"gated": [{"BLOCK": 16}, {"BLOCK": 64}, {"BLOCK": 32}]})
    seconds_by_block(monkeypatch, {0: 10.0, 16: 9.9, 64: 5.0, 32: 7.0})
    assert tune(glu, gated, example, CPU) == {"gated float32": {"BLOCK": 64}}
    assert _table.Table(table.path, {}).blocks == {"gated float32": {"BLOCK": 64}}


def test_a_block_that_fails_or_hardly_wins_is_not(table, monkeypatch):
    # The interpreter knows no block that is no power of two.
    monkeypatch.setattr(glu, "CANDIDATES", {"gated": [{"BLOCK": 16}, {"BLOCK": 17}], "of another operation": [{}]})
    seconds_by_block(monkeypatch, {0: 10.0, 16: 9.9, 17: 1.0})
    assert tune(glu, gated, example, CPU) == {} and table.blocks == {}


def test_a_kernel_that_refuses_is_not_tuned(table):
    assert tune(glu, gated, lambda: EXAMPLES["gated"][0](Draw("cpu", torch.float64), TINY), CPU) == {}


TWINS = [adamw, attention, convolution, cross_entropy, delta, glu, grouped_matmul, muon, norm, quantize, rope, scan]


@pytest.mark.parametrize("twin", TWINS)
def test_candidates_are_of_what_the_launcher_knows(twin):
    known = {"BLOCK", "INNER", "PAIRS", "TOKENS", "CHANNELS", "warps", "stages"}
    known |= {"queries", "keys", "rows", "columns", "inner", "value", "sums"}
    for options in twin.CANDIDATES.values():
        assert len(options) > 3 and all(blocks.keys() <= known for blocks in options)


@pytest.mark.parametrize(
    "name",
    ["attention", "linear_cross_entropy", "grouped_matmul", "gated_linear_chunked", "gated_delta_chunked"]
    + ["causal_convolution", "quantize_tensor", "quantize_rows", "quantize_blocks"],
)
def test_a_launcher_uses_the_blocks_that_are_being_tried(name, device):
    """Each asks for its own, and what it asks for changes nothing but the speed."""
    op = getattr(groundup.kernels, name)
    twin = find_twin(op.reference.__module__, "triton")
    build = EXAMPLES[name][0]
    _support.asked.clear()
    expected = outcome(getattr(twin, name), build(Draw(device, torch.float32), SMALL))
    asked = [launcher for launcher in twin.CANDIDATES if _support.asked.pop(launcher, None)]
    assert asked, twin.CANDIDATES
    for launcher in asked:
        with _support.trying(launcher, {"warps": 2}):
            got = outcome(getattr(twin, name), build(Draw(device, torch.float32), SMALL))
        assert launcher in _support.asked
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_tuning_on_a_gpu(tmp_path, monkeypatch):
    """Whatever wins is a candidate, and is used from then on."""
    made = _table.Table(tmp_path / "table.json", {})
    for module in (_table, kernel_tuning, _support):
        monkeypatch.setattr(module, "table_of", lambda device: made)
    gpu = torch.device("cuda", torch.cuda.current_device())
    chosen = tune(glu, gated, lambda: EXAMPLES["gated"][0](Draw(gpu, torch.bfloat16), Size(seq=4096)), gpu)
    assert all(blocks in glu.CANDIDATES["gated"] for blocks in chosen.values())
    for blocks in chosen.values():
        assert tuned("gated", (torch.bfloat16,), glu.BLOCKS) == blocks


class OnAGpu(Case):
    twin = norm  # type: ignore[assignment]


def test_what_is_measured_of_a_kernel_is_remembered(device, table):
    case = OnAGpu("rmsnorm", EXAMPLES["rmsnorm"][0], "tiny", TINY, torch.float32, device)
    rows = [{"note": "", "ours": 9.0, "reference": 9.0}, {"note": "", "ours": 2.0, "reference": 3.0, "compiled": 1.0}]
    remember(case, rows)
    key = _table.key_of("rmsnorm", torch.float32, norm)
    assert _table.Table(table.path, {}).speed(key, TINY.tokens * TINY.d_model) == [1.5, 0.5]
    assert key not in table.verdicts


def test_a_kernel_that_is_wrong_at_the_measured_size_is_distrusted(device, table, monkeypatch):
    monkeypatch.setattr(norm, "rmsnorm", lambda x, w, eps=1e-5: 2 * rmsnorm.reference(x, w, eps))
    case = OnAGpu("rmsnorm", EXAMPLES["rmsnorm"][0], "tiny", TINY, torch.float32, device)
    rows = [{"note": "liger: absent", "ours": 2.0, "reference": 3.0}]
    remember(case, rows)
    assert "something else" in str(table.verdicts[_table.key_of("rmsnorm", torch.float32, norm)])
    assert rows[0]["note"].startswith("liger: absent; it gave something else") and table.speeds == {}
