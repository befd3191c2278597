"""Our engine beside what `test_parity` shows: states that move between plans, frozen weights, norms, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groundup.optim import AdamW, clip_by_global_norm
from groundup.parallel.apply import apply_plan
from groundup.parallel.compose import check_plan
from groundup.parallel.plan import ParallelPlan
from tests.distributed import run_ranks
from tests.parallel.parity import nats, part_of, rows_of, transformer

DTYPE = torch.float64
FROZEN = ("embed.weight", "blocks.1.ffn.up.weight", "blocks.2.mixer_norm.weight")
STEPS = ("data=2 zero=2", "shard=2", "pipeline=2 microbatches=2", "tensor=2 sequence=true", "data=2", "context=2")


def adamw(named: Any) -> AdamW:
    return AdamW([p for _, p in named], lr=1e-2, eps=1e-4)


def with_segments(step: int) -> dict[str, Tensor]:
    """Two documents in each row, whose positions begin anew."""
    batch = rows_of(step)
    columns = torch.arange(batch["tokens"].shape[1]).expand_as(batch["tokens"])
    second = columns >= 5 + step % 3
    return batch | {"segments": second.long(), "positions": columns - second * (5 + step % 3)}


def frozen() -> nn.Module:
    model = transformer("deep", DTYPE)
    for name in FROZEN:
        model.get_parameter(name).requires_grad_(False)
    return model


def alone(steps: int) -> tuple[list[float], list[float], dict[str, Tensor], dict[str, Tensor]]:
    """(losses, norms, weights, the first moments) of one process."""
    model = frozen()
    optimizer = adamw(model.named_parameters())
    losses, norms = [], []
    for step in range(steps):
        batch = with_segments(step)
        inputs = {name: tensor[:, :-1] for name, tensor in batch.items()}
        total, weight = nats(model(**inputs), batch["tokens"][:, 1:])
        total.backward()
        losses.append(total.item() / weight.item())
        norms.append(clip_by_global_norm(model.parameters(), 0.5, divisor=weight.item()).item())
        optimizer.step()
        optimizer.zero_grad()
    first = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters() if p in optimizer.state}
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}, first


def each_step_under_another_plan(rank: int, size: int) -> Any:
    weights, state = None, {}
    losses, norms = [], []
    for step, text in enumerate(STEPS):
        engine = apply_plan(frozen(), ParallelPlan.parse(text))
        engine.optimize(adamw)
        if weights is not None:
            engine.load_full(weights.items())
            engine.load_optimizer_state(state)
        batch = part_of(with_segments(step), engine.mesh.rows, engine.mesh.row_parts)
        halves = [part_of(batch, half, 2) for half in range(2)] if step % 2 else [batch]
        if engine.plan.pipeline > 1:
            halves = [batch]
        total, weight = engine.accumulate(halves, nats)
        losses.append(total / weight)
        norms.append(engine.step(divisor=weight, clip=0.5))
        weights, state = engine.full_state_dict(), engine.optimizer_state()
    return losses, norms, weights, {name: states["exp_avg"] for name, states in state.items()}


def test_training_goes_on_under_any_plan_with_frozen_weights_and_packed_documents():
    """Each step is made by another plan, from the whole weights and states of the one before."""
    results, expected = run_ranks(each_step_under_another_plan, 2), alone(len(STEPS))
    for found in results:
        assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=0)
        assert found[1] == pytest.approx(expected[1], rel=1e-12, abs=0)
        for tensors, others in ((found[2], expected[2]), (found[3], expected[3])):
            assert tensors.keys() == others.keys()
            for name, tensor in others.items():
                assert (tensors[name] - tensor).norm() <= 1e-12 * tensor.norm(), name
    assert FROZEN[0] not in expected[3] and FROZEN[0] in expected[2]


def misuse(rank: int, size: int) -> list[str]:
    told = []

    def refused(kind: type[Exception], call: Callable[[], Any]) -> None:
        with pytest.raises(kind) as caught:
            call()
        told.append(str(caught.value))

    batch = part_of(rows_of(0), rank, size)
    engine = apply_plan(transformer("tied", DTYPE), ParallelPlan(data=2))
    engine.accumulate([batch], nats)
    refused(RuntimeError, lambda: engine.step())
    engine.optimize(adamw)
    refused(RuntimeError, lambda: engine.accumulate([batch], nats))
    engine.step()
    refused(ValueError, lambda: engine.accumulate([batch | {"mask": batch["tokens"]}], nats))
    refused(ValueError, lambda: engine.load_full({"embed.weigth": torch.zeros(1)}))
    refused(ValueError, lambda: engine.load_full({"embed.weight": torch.zeros(1)}))
    refused(ValueError, lambda: engine.load_full({"embed.weight": torch.zeros(31, 16)}))
    refused(ValueError, lambda: engine.load_optimizer_state({"nobody": {}}))
    engine = apply_plan(transformer("tied", DTYPE), ParallelPlan(data=2, zero=1))
    refused(RuntimeError, lambda: engine.accumulate([batch], nats))
    engine = apply_plan(transformer("deep", DTYPE), ParallelPlan(pipeline=2, microbatches=3))
    refused(ValueError, lambda: engine.accumulate([rows_of(0)], nats))
    refused(ValueError, lambda: apply_plan(transformer("tied", DTYPE), ParallelPlan(data=4)))
    return told


def test_misuse_is_named():
    expected = [
        "call `optimize` before", "give all its batches before", "a batch has mask", "embed.weight", "has shape (1,)",
        "nothing was given for", "nobody", "build the optimizer first", "4 rows cannot be 3", "is for 4 ranks",
    ]  # fmt: skip
    for told in run_ranks(misuse, 2):
        assert len(told) == len(expected)
        for text, part in zip(told, expected, strict=True):
            assert part in text


@pytest.mark.parametrize(
    ("plan", "kind", "says"),
    [
        (ParallelPlan(data=2, shard=2, zero=1), "tied", "zero and shard"),
        (ParallelPlan(data=2, expert=2, zero=1), "experts", "zero and expert"),
        (ParallelPlan(data=2, pipeline=2, zero=1), "deep", "zero and pipeline"),
        (ParallelPlan(shard=2, pipeline=2), "deep", "pipeline and shard"),
        (ParallelPlan(context=2, pipeline=2), "deep", "pipeline and context"),
        (ParallelPlan(tensor=2, pipeline=2, sequence=True), "deep", "pipeline and sequence"),
        (ParallelPlan(pipeline=2), "experts", "balancing losses"),
        (ParallelPlan(expert=2, pipeline=2), "experts", "pipeline and expert"),
    ],
)
def test_what_cannot_be_combined_is_refused(plan, kind, says):
    with pytest.raises(ValueError, match=says):
        check_plan(transformer(kind, DTYPE), plan)


def test_recompute_needs_a_model_that_can():
    with pytest.raises(ValueError, match="recompute"):
        check_plan(nn.Linear(2, 2), ParallelPlan(recompute=True))


def test_a_state_without_a_whole_is_refused():
    assert [error for error in run_ranks(muon_over_slices, 2)] == ["refused"] * 2


def muon_over_slices(rank: int, size: int) -> str:
    """A state that is neither like its parameter nor a number: nobody can say what the whole one is."""
    engine = apply_plan(transformer("tied", DTYPE), ParallelPlan(tensor=2))
    engine.optimize(adamw)
    engine.accumulate([rows_of(0)], nats)
    engine.step()
    cut = next(name for name in engine.slices.cuts)
    engine.optimizer.state[engine.slices.own[cut]]["rows"] = torch.ones(3)
    with pytest.raises(ValueError, match=f"state rows of {cut}"):
        engine.optimizer_state()
    return "refused"
