"""Weights as a decode step keeps them."""

import pytest
import torch

from groundup.device import CACHE_LINE
from groundup.inference.decode.pack import CHUNK_BYTES, Arena, blocks, pack, rounded

WEIGHT = torch.randn(70, 45, generator=torch.Generator().manual_seed(0))


def test_blocks_are_outputs_by_inputs_with_zeros_around():
    found = blocks(WEIGHT)
    assert found.shape == (3, 2, 32, 32)
    assert found[1, 0, 3, 5] == WEIGHT[35, 5] and found[2, 1, 5, 12] == WEIGHT[69, 44]
    assert found[2, :, 6:].eq(0).all() and found[:, 1, :, 13:].eq(0).all()


@pytest.mark.parametrize(("kind", "bits"), {"fp32": 32, "bf16": 16, "int8": 8.5, "int4": 5}.items())
def test_bits_per_weight_are_as_promised(kind, bits):
    assert pack(torch.randn(64, 64), kind).nbytes * 8 == bits * 64 * 64


@pytest.mark.parametrize(("kind", "steps"), {"fp32": None, "bf16": None, "int8": 254, "int4": 15}.items())
def test_rounding_is_at_most_half_a_step(kind, steps):
    error = (rounded(WEIGHT, kind) - WEIGHT).abs()
    if kind == "fp32":
        assert error.max() == 0
    elif kind == "bf16":
        assert torch.equal(rounded(WEIGHT, kind), WEIGHT.bfloat16().float())
    else:
        groups = torch.nn.functional.pad(WEIGHT, (0, 19)).unflatten(1, (2, 32))
        width = 2 * groups.abs().amax(-1) if kind == "int8" else groups.amax(-1) - groups.amin(-1)
        # A hundredth more for scales and minima, which are bfloat16.
        bound = (width / steps * 0.505 + 0.006 * groups.abs().amax(-1)).repeat_interleave(32, 1)[:, :45]
        assert (error <= bound).all() and error.max() > 0


def test_a_gate_lies_before_what_it_gates():
    gate = WEIGHT + 1
    packed = pack(WEIGHT, "fp32", gate)
    assert packed.blocks == 6 and packed.outputs == 70
    assert packed.values[0, 0, 5, 7] == gate[7, 5] and packed.values[3, 0, 5, 7] == WEIGHT[39, 5]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rows_of_zeros_stay_zero(kind):
    assert rounded(torch.zeros(32, 32), kind).eq(0).all()


def test_what_an_arena_keeps_begins_on_cache_lines_and_stays_itself():
    arena, given = Arena(), [torch.arange(3.0), WEIGHT, torch.zeros(0), torch.arange(7).bfloat16()]
    kept = [arena.keep(tensor) for tensor in given]
    more = arena.keep(torch.zeros(CHUNK_BYTES, dtype=torch.uint8))
    assert all(k.equal(g) and k.data_ptr() != g.data_ptr() for k, g in zip(kept, given, strict=True) if g.numel())
    assert all(tensor.data_ptr() % CACHE_LINE == 0 for tensor in (*kept, more) if tensor.numel())
