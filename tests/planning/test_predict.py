"""Seconds of a step, by hand for each axis."""

import math

import pytest
import torch

from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.params import count_parameters
from groundup.parallel.plan import ParallelPlan
from groundup.planning.predict import passes, predict
from groundup.planning.units import Costs
from tests.planning.small import FREE, MODEL, hardware, job

PARAMETERS = count_parameters(MODEL).total
X = 2 * 128 * 64 * 4
"""Bytes of the hidden states of two rows in fp32."""


def parts(text, rows=2, **changes):
    return predict(ParallelPlan.parse(text), rows, job(), hardware(**changes))


def test_one_rank_only_computes():
    flops = 16 * 128 * training_flops_per_token(MODEL, 128)
    alone = parts("", bandwidth=1e9)
    assert alone.compute == pytest.approx(flops / 1e9, rel=1e-3)
    assert alone.update == pytest.approx(28 * PARAMETERS / 1e9)
    assert (alone.recompute, dict(alone.exposed), alone.bubble) == (0.0, {}, 0.0)
    assert alone.seconds == alone.compute + alone.update


def test_what_is_cut_and_small_takes_longer():
    once = parts("tensor=2", inside=FREE).compute
    assert parts("tensor=2", inside=FREE, shrunk={2: 0.5}).compute > 1.5 * once
    assert parts("tensor=2", inside=FREE, layer_seconds=1.0).compute == pytest.approx(once + 8 * 8 * 3 + 8 * 3)


def test_copies_sum_their_gradients_once():
    found = parts("data=4", overlaps=False)
    # three kinds of unit: an embedding, eight layers, and what is behind them, of 2 (4 - 1) messages each
    assert found.exposed == {"data": pytest.approx(2 * 3 / 4 * 4 * PARAMETERS / 1e9 + 10 * 6e-4)}
    assert parts("data=4 zero=1", overlaps=False).exposed["data"] == pytest.approx(found.exposed["data"])


def test_the_backward_pass_hides_the_sum_but_for_its_end():
    hidden, seen = (
        parts("data=4", overlaps=o, inside=FREE if o is None else hardware().network.inside) for o in (True, False)
    )
    assert 0 < hidden.exposed["data"] < seen.exposed["data"] / 5


def test_shards_travel_three_times_in_every_pass():
    found = parts("shard=4", overlaps=False)
    assert found.exposed == {"shard": pytest.approx(2 * (3 * 3 / 4 * 4 * PARAMETERS / 1e9 + 10 * 9 * 1e-4))}


def test_tensor_parallelism_waits_for_each_sum():
    found = parts("tensor=4 sequence=true")
    assert found.exposed == {"tensor": pytest.approx(8 * 8 * 4 * (2 * 3 / 4 * X / 1e9 + 6e-4))}
    assert parts("tensor=4 recompute=true").exposed["tensor"] == pytest.approx(5 / 4 * found.exposed["tensor"])


def test_recomputing_does_the_layers_once_more():
    plain, again = parts(""), parts("recompute=true")
    head = 16 * 128 * 2 * 64 * 512 / 1e9
    assert again.recompute == pytest.approx(plain.compute / 3 - head)


def test_the_bubble_is_that_of_the_formula():
    costs = Costs(ParallelPlan.parse("pipeline=4 microbatches=8"), 2, job(), hardware())
    layer = costs.unit("layer").forward * 3
    for text, chunks in (
        ("pipeline=4 microbatches=8", 1),
        ("pipeline=4 microbatches=8 schedule=interleaved chunks=2", 2),
    ):
        found = parts(text, inside=FREE)
        assert found.bubble == pytest.approx(3 * 2 * layer / chunks)


def test_keys_go_round_beside_attention():
    fast, slow = parts("context=4"), parts("context=4", inside=hardware().network.inside, flops=1e15)
    assert fast.exposed.get("context", 0.0) < slow.exposed["context"]
    ring = 8 * 8 * 3 * (3 * (2 * 128 / 4 * 2 * 4 * 16 * 4) / 1e9 + 3e-4)
    assert parts("context=4", overlaps=False).exposed["context"] == pytest.approx(ring)


def test_copies_along_context_have_gradients_to_sum():
    assert parts("context=4", overlaps=False).exposed["data"] == parts("data=4", overlaps=False).exposed["data"]


def test_rows_must_divide():
    assert passes(ParallelPlan.parse("data=4"), 2, job()) == 2
    with pytest.raises(ValueError, match="16 rows cannot be divided into 4 parts of micro-batches of 3"):
        passes(ParallelPlan.parse("data=4"), 3, job())
    with pytest.raises(ValueError, match="microbatches=4, but 16 rows in 1 parts are 8 micro-batches of 2"):
        passes(ParallelPlan.parse("pipeline=2 microbatches=4"), 2, job())


def test_messages_in_half_the_bytes_take_half_the_time():
    plan, machine = ParallelPlan.parse("tensor=2"), hardware(inside=FREE.__class__(0.0, 1e9))
    full, half = (predict(plan, 2, job(dtype=dtype), machine) for dtype in (torch.float32, torch.bfloat16))
    assert half.exposed["tensor"] == pytest.approx(full.exposed["tensor"] / 2) and math.isfinite(half.seconds)
