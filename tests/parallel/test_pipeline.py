"""Pipelines against one process that accumulates the same micro-batches."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.model.position import LearnedPositions
from groundup.optim import AdamW
from groundup.parallel import Pipeline, measured_bubble, split_blocks
from groundup.parallel.messages import Mailbox
from tests.distributed import RankFailed, run_ranks
from tests.thorough import times

VOCAB, SEQ, MICRO = 19, 6, 4
SCHEDULES = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2))


def transformer(dtype=torch.float64, layers=8, tied=False, **config) -> Transformer:
    block = BlockConfig(AttentionConfig(2, 1, 4), MLPConfig(12))
    model = Transformer(ModelConfig(VOCAB, 8, layers, (block,), tie_embeddings=tied, **config)).to(dtype)
    model.compute_dtype = dtype
    return model


def batches(step):
    """MICRO times (tokens, targets, mask), with another number of tokens that count in each."""
    generator = torch.Generator().manual_seed(step)
    start, stride = torch.randint(0, VOCAB, (2, MICRO, 2, 1), generator=generator)
    tokens = (start + stride % 3 * torch.arange(SEQ + 1)) % VOCAB
    mask = torch.rand(MICRO, 2, SEQ, generator=generator) < torch.linspace(0.2, 0.9, MICRO)[:, None, None]
    return tokens[..., :-1], tokens[..., 1:], mask


def loss_sum(logits, targets, mask):
    return (F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * mask.flatten()).sum()


def update(optimizer, parameters, weight):
    for p in parameters:
        p.grad /= weight
    optimizer.step()
    optimizer.zero_grad()


def trained_alone(dtype, steps, tied):
    model = transformer(dtype, tied=tied)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        inputs, targets, mask = batches(step)
        parts = [loss_sum(model(inputs[i]), targets[i], mask[i]) for i in range(MICRO)]
        for part in parts:
            part.backward()
        update(optimizer, model.parameters(), mask.sum())
        losses.append([part.item() for part in parts])
    return losses, {name: p.detach() for name, p in model.named_parameters()}


def train_in_stages(rank, size, dtype, steps, tied, schedules):
    results = []
    for name, virtual in schedules:
        chunks = split_blocks(transformer(dtype, tied=tied), size * virtual)[rank::size]
        pipeline = Pipeline(chunks, name, MICRO, shared=["embed.weight"] if tied else [])
        own = {n: p for chunk in chunks for n, p in chunk.named_parameters()}
        optimizer = AdamW(own.values(), lr=1e-2)
        losses = []
        for step in range(steps):
            inputs, targets, mask = batches(step)
            found = pipeline.step(inputs, lambda out, i, t=targets, m=mask: loss_sum(out, t[i], m[i]))
            update(optimizer, own.values(), mask.sum())
            losses.append([loss.item() for loss in found])
        results.append((losses, {n: p.detach() for n, p in own.items()}, pipeline.most_live))
    return results


@pytest.mark.parametrize(
    ("size", "dtype", "tied", "steps"),
    [
        (2, torch.float64, False, 10),
        (4, torch.float64, True, 3),
        pytest.param(4, torch.float32, False, times(20), marks=pytest.mark.slow),
        pytest.param(2, torch.float64, True, times(10), marks=pytest.mark.slow),
    ],
)
def test_every_schedule_equals_accumulation(size, dtype, tied, steps):
    """To the bit; a tied table, whose gradient is added up in another order, to 1e-12 (with 1e-6 in fp32 nowhere)."""
    losses, expected = trained_alone(dtype, steps, tied)
    ranks = run_ranks(train_in_stages, size, dtype, steps, tied, SCHEDULES, timeout=900)
    for number, (name, virtual) in enumerate(SCHEDULES):
        found = [rank[number] for rank in ranks]
        assert [each for each, _, _ in found[:-1]] == [[[]] * steps] * (size - 1)
        for ours, theirs in zip(found[-1][0], losses, strict=True):
            assert ours == (pytest.approx(theirs, rel=1e-12, abs=1e-12) if tied else theirs), name
        names = [n for _, parameters, _ in found for n in parameters]
        assert sorted(names) == sorted([*expected, "embed.weight"] if tied else expected)
        for _, parameters, _ in found:
            for n, p in parameters.items():
                torch.testing.assert_close(p, expected[n], rtol=0, atol=1e-12 if tied else 0)
        live = [MICRO if name == "gpipe" else min(size - rank, MICRO) for rank in range(size)]
        if virtual > 1:
            live = [min((size - rank - 1) * 2 + (virtual - 1) * size + 1, MICRO * virtual) for rank in range(size)]
        assert [most for _, _, most in found] == live


class Fork(nn.Module):
    """Two tensors out, of which one has no gradient; counts what it still keeps alive."""

    def __init__(self, frozen=False):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1, 15).view(5, 3), requires_grad=not frozen)

    def forward(self, x, *, scale):
        return x @ self.weight * scale, torch.arange(x.shape[0]) % 2


class Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3))

    def forward(self, x, index, *, scale):
        return (x * self.weight)[index] * scale


def odd_modules(rank, size):
    generator = torch.Generator().manual_seed(0)
    inputs = list(torch.randn(6, 3, 5, generator=generator))
    scales = [{"scale": float(i + 1)} for i in range(6)]
    for frozen in (False, True):
        first, last = Fork(frozen), Join()
        for _ in range(2):
            for i in range(6):
                last(*first(inputs[i], **scales[i]), **scales[i]).square().sum().backward()
        stage = Fork(frozen) if rank == 0 else Join()
        pipeline = Pipeline(stage, "1f1b", 6)
        for _ in range(2):  # gradients of two steps add up
            losses = pipeline.step(inputs if rank == 0 else None, lambda y, i: y.square().sum(), scales)
            assert len(losses) == (6 if rank == 1 else 0) and not pipeline.mailbox.sent
            assert pipeline.most_live == 2 - rank
        expected = (first, last)[rank].weight.grad
        if expected is None:
            assert stage.weight.grad is None
        else:
            torch.testing.assert_close(stage.weight.grad, expected, rtol=1e-6, atol=1e-6)
    wider = [torch.cat([x, x]) for x in inputs]  # a step may have other shapes than the one before
    pipeline.step(wider, lambda y, i: y.square().sum(), scales)


def test_any_module_with_tuples_keywords_and_frozen_parameters():
    run_ranks(odd_modules, 2)


class Counting(Mailbox):
    """How many messages wait at a time to be received."""

    most = 0

    def send(self, action, tensors):
        super().send(action, tensors)
        self.most = max(self.most, len(self.sent))


def hold_few_messages(rank, size, count):
    stage = nn.Linear(4, 4)
    pipeline = Pipeline(stage, "1f1b", count)
    pipeline.mailbox.__class__ = Counting
    dist.barrier()
    pipeline.step([torch.ones(2, 4)] * count, lambda y, i: y.sum())
    assert len(pipeline.timeline) == 2 * count
    bubble = measured_bubble(pipeline)
    assert 0 < bubble < 1
    return pipeline.mailbox.most, bubble


def test_messages_that_were_received_are_freed():
    few, many = run_ranks(hold_few_messages, 3, 4), run_ranks(hold_few_messages, 3, 24)
    assert max(most for most, _ in many) <= max(most for most, _ in few) + 1
    assert len({bubble for _, bubble in many}) == 1


def split(rank, size):
    torch.manual_seed(0)
    model = transformer(layers=5, positions=LearnedPositions(16))
    stages = split_blocks(model, 3)
    assert [list(dict(stage.blocks.named_children())) for stage in stages] == [["0"], ["1", "2"], ["3", "4"]]
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    state = model.state_dict()
    assert all(torch.equal(state[name], t) for stage in stages for name, t in stage.state_dict().items())
    tokens = batches(0)[0][0]
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]] * 2)
    positions = torch.tensor([[0, 1, 0, 1, 2, 0]] * 2)
    for keywords in ({}, {"segments": segments, "positions": positions}):
        x = tokens
        for stage in stages:
            x = stage(x, **keywords)
        assert torch.equal(x, model(tokens, **keywords))
    assert len(model.blocks) == 5 and model.embed is not None

    # One rank that has all chunks sends nothing.
    group = [dist.new_group([r]) for r in range(size)][rank]
    pipeline = Pipeline(split_blocks(model, 2), "interleaved", MICRO, group=group)
    inputs, targets, mask = batches(0)
    losses = pipeline.step(inputs, lambda out, i: loss_sum(out, targets[i], mask[i]))
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    for i in range(MICRO):
        loss = loss_sum(model(inputs[i]), targets[i], mask[i])
        loss.backward()
        assert torch.equal(loss, losses[i])
    assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters(), strict=True))


def test_stages_are_the_model_in_parts():
    run_ranks(split, 2)


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        (lambda: nn.Linear(1, 1), 2, "a Linear has no blocks, embed"),
        (lambda: transformer(layers=2), 3, "2 blocks cannot be 3 stages"),
    ],
)
def test_what_cannot_be_split_is_refused(model, count, message):
    with pytest.raises(ValueError, match=message):
        split_blocks(model(), count)


def wrong_calls(rank, size):
    stage = nn.Linear(4, 4)
    messages = []
    for arguments, keywords in [
        (("1f1b" if rank else "gpipe", 4), {}),
        (("1f1b", 4), {"shared": ["weight", "wieght"]}),
        (("interleaved", 4), {}),
    ]:
        with pytest.raises(ValueError) as error:
            Pipeline(stage, *arguments, **keywords)
        messages.append(str(error.value))
    with pytest.raises(ValueError, match="multiple of 2 micro-batches.*got 3"):
        Pipeline([stage, stage], "interleaved", 3)
    pipeline = Pipeline(stage, "1f1b", 4)
    if rank == 0:
        for inputs, message in ((None, "needs inputs"), ([torch.ones(2, 4)] * 3, "3 inputs for 4 micro-batches")):
            with pytest.raises(ValueError, match=message):
                pipeline.step(inputs, None)
    else:
        with pytest.raises(ValueError, match="the last rank needs a loss"):
            pipeline.step(None, None)
        with pytest.raises(ValueError, match="5 keywords for 4"):
            pipeline.step(None, lambda y, i: y.sum(), [{}] * 5)
    return messages


def test_wrong_calls_are_named():
    for first, second, third in run_ranks(wrong_calls, 2):
        assert "rank 1 runs 1f1b, 4 micro-batches, 1 chunks, rank 0 gpipe, 4 micro-batches" in first
        assert "shared='wieght' is on rank(s) []; expected at least two" in second
        assert "interleaved with virtual=1" in third


class Failing(nn.Linear):
    def forward(self, x):
        if (x == 3).any():
            raise KeyError("a bug in the stage")
        return super().forward(x)


def fail_in(rank, size, how):
    stage = Failing(4, 4) if rank == 1 else nn.Identity()
    pipeline = Pipeline(stage, "1f1b", 4)
    inputs = [torch.full((2 + (how == "shape" and i == 2), 4), float(i), requires_grad=True) for i in range(4)]
    pipeline.step(inputs, (lambda y, i: y) if how == "loss" else (lambda y, i: y.sum()))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("stage", r"KeyError: 'a bug in the stage'\nin the pipeline's stage 1 \(rank 1\): forward of micro-batch 3"),
        ("shape", r"stage 0 gave float32 \(3, 4\) for micro-batch 2 and float32 \(2, 4\) for micro-batch 0"),
        ("loss", r"grad can be implicitly created only for scalar outputs\nin the pipeline's stage 1"),
    ],
)
def test_an_error_in_a_stage_tells_where(how, message):
    with pytest.raises(RankFailed, match=message):
        run_ranks(fail_in, 2, how)
