"""Fully sharded data parallelism: the oracle is one process that accumulates the ranks' batches in their order."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.optim import AdamW
from groundup.parallel import full_state_dict, full_tensors, fully_shard, gathered, grad_norm, load_full
from groundup.parallel.fsdp import sharding
from tests.distributed import run_ranks
from tests.thorough import times

VOCAB, SEQ = 19, 6


def transformer(dtype=torch.float64, layers=3, tied=False) -> Transformer:
    block = BlockConfig(AttentionConfig(2, 1, 4), MLPConfig(12))
    model = Transformer(ModelConfig(VOCAB, 8, layers, (block,), tie_embeddings=tied)).to(dtype)
    model.compute_dtype = dtype
    return model


def batch(step, rank):
    """(tokens, mask): how many tokens count depends on the rank, and is none for rank 3 in every fifth step."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    start, stride = torch.randint(0, VOCAB, (2, 2, 1), generator=generator)
    tokens = (start + stride % 3 * torch.arange(SEQ + 1)) % VOCAB
    mask = torch.rand(2, SEQ, generator=generator) < 0.3 + 0.2 * rank
    return tokens, mask & (rank != 3 or step % 5 != 0)


def loss_sum(model, tokens, mask):
    logits = model(tokens[:, :-1])
    return (F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none") * mask.flatten()).sum()


def divide(model, weight):
    for p in model.parameters():
        p.grad /= weight


def trained_alone(size, dtype, steps, tied, fused):
    model = transformer(dtype, tied=tied)
    optimizer = AdamW(model.parameters(), lr=1e-2, fused=fused)
    losses = []
    for step in range(steps):
        parts = [loss_sum(model, *batch(step, rank)) for rank in range(size)]
        for part in parts:
            part.backward()
        weight = sum(int(batch(step, rank)[1].sum()) for rank in range(size))
        divide(model, weight)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(part.item() for part in parts) / weight)
    return losses, {name: p.detach() for name, p in model.named_parameters()}


def train_sharded(rank, size, dtype, steps, tied, fused):
    model = fully_shard(transformer(dtype, tied=tied))
    optimizer = AdamW(model.parameters(), lr=1e-2, fused=fused)
    losses = []
    for step in range(steps):
        tokens, mask = batch(step, rank)
        loss = loss_sum(model, tokens, mask)
        loss.backward()
        totals = torch.stack([loss.detach().double(), mask.sum().double()])
        parts = [torch.empty_like(totals) for _ in range(size)]
        dist.all_gather(parts, totals)
        weight = sum(int(part[1]) for part in parts)
        divide(model, weight)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(part[0].item() for part in parts) / weight)
    return losses, {name: p.detach() for name, p in full_tensors(model)}


@pytest.mark.parametrize(
    ("size", "dtype", "tied", "steps"),
    [
        (2, torch.float64, False, 20),
        pytest.param(2, torch.float32, True, times(50), marks=pytest.mark.slow),
        pytest.param(4, torch.float64, False, times(50), marks=pytest.mark.slow),
    ],
)
def test_training_equals_accumulation_to_the_bit(size, dtype, tied, steps):
    losses, expected = trained_alone(size, dtype, steps, tied, fused=False)
    assert losses[-1] < losses[0] - (0.2 if steps >= 200 else 0.0)
    for found, whole in run_ranks(train_sharded, size, dtype, steps, tied, False, timeout=600):
        assert found == losses
        assert whole.keys() == expected.keys()
        assert all(torch.equal(whole[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_with_the_fused_optimizer_whose_last_bit_depends_on_a_values_place():
    steps = times(50)
    losses, expected = trained_alone(4, torch.float64, steps, False, fused=True)
    for found, whole in run_ranks(train_sharded, 4, torch.float64, steps, False, True, timeout=600):
        assert max(abs(a - b) for a, b in zip(found, losses, strict=True)) < 1e-12
        for name, p in whole.items():
            torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-12)


class Odd(nn.Module):
    """Sizes that no number of ranks divides, a scalar, and a parameter without elements."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 41), nn.Linear(41, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x):
        return self.second(self.first(x).tanh()) * self.scale + self.nothing.sum()


def share(model):
    """Bytes of this rank's pieces, which must be all that the parameters hold."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def look_at_memory(rank, size):
    model, odd = transformer(layers=4), Odd()
    total, odd_total = share(model), share(odd)
    axes = [p.ndim for p in model.parameters()]
    fully_shard(model)
    fully_shard(odd)
    state = sharding(model)
    assert [p.ndim for p in model.parameters()] == axes
    optimizer = AdamW(model.parameters(), lr=1e-2)
    seen = []
    for step in range(2):
        loss_sum(model, *batch(step, rank)).backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())
        optimizer.step()
        assert state.meter.live == 0 and not any(flat.is_whole for flat in state.flats)
        seen.append((share(model), sum(flat.shard.nbytes for flat in state.flats), state.meter.most_live))
    states = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.ndim)
    units = [sum(flat.bytes for flat in unit.flats) for unit in state.units]
    return total, odd_total, share(odd), seen, states, len(axes), units, state.meter


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_holds_its_share_and_at_most_two_units_are_whole(size):
    results = run_ranks(look_at_memory, size)
    total, odd_total = results[0][:2]
    assert sum(r[3][0][0] for r in results) == total and sum(r[2] for r in results) == odd_total
    for _, _, odd_share, seen, states, counts, (root, *blocks), meter in results:
        padding = 8 * 8 * counts
        assert odd_share <= odd_total / size + 16 * 4
        assert seen[0][0] <= seen[0][1] <= total / size + padding / size + 8 * (1 + len(blocks))
        assert states <= 2 * seen[0][1]
        assert [most for _, _, most in seen] == [root + 2 * blocks[0]] * 2
        # Gathered twice per step and reduced once, and all of it but a rank's own part is sent.
        whole = root + sum(blocks)
        assert whole - total <= padding + 8 * size * (1 + len(blocks))
        assert meter.gathered == 2 * 2 * whole * (size - 1) // size
        assert meter.reduced == 2 * whole * (size - 1) // size


Pair = namedtuple("Pair", "left right")


@dataclass
class Side:
    losses: list
    hint: torch.Tensor


class Branching(nn.Module):
    """Takes and returns containers, and leaves a loss in a list that it was handed."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(7, 7), nn.Linear(7, 7, bias=False)

    def forward(self, pair, *, side):
        side.losses.append((self.left.weight * side.hint).square().sum())
        return {"pair": Pair(self.left(pair.left), [self.right(pair.right)])}


class Opaque:
    def __init__(self, tensor):
        self.tensor = tensor


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(7, 7)

    def forward(self, x):
        return Opaque(self.inner(x).tanh())


class Zoo(nn.Module):
    """Units of many kinds; two are called twice, one is an LSTM, one hides its output, `unused` is never called."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([Branching(), Branching()])
        self.kinds = nn.ModuleDict({"lstm": nn.LSTM(7, 7), "hiding": Hiding(), "unused": nn.Linear(7, 2)})
        self.twice = nn.ModuleList([nn.Linear(7, 7)])
        self.gain = nn.Parameter(torch.full((1,), 1.5))

    def forward(self, x):
        side = Side([], torch.full((7, 7), 0.1))
        pair = Pair(x, x * self.gain)
        for branch in self.branches:
            out = branch(pair, side=side)
            pair = Pair(out["pair"].left, out["pair"].right[0])
        y, _ = self.kinds["lstm"](pair.left + pair.right)
        y = self.kinds["hiding"](y).tensor
        y = checkpoint(self.twice[0], self.twice[0](y), use_reentrant=False)
        return (y * self.gain).square().sum() + sum(side.losses)


def zoo():
    torch.manual_seed(0)
    return Zoo().double()


def inputs(rank):
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def compare_zoo(rank, size):
    single, sharded = zoo(), fully_shard(zoo())
    for _ in range(2):
        for r in range(size):
            single(inputs(r)).backward()
        sharded(inputs(rank)).backward()
    (hiding,) = [unit for unit in sharding(sharded).units if unit.stays]
    assert hiding.flats[0].slots[0].name == "kinds.hiding.inner.weight"
    assert sharding(sharded).meter.live == hiding.flats[0].bytes
    norm = torch.stack([p.grad.square().sum() for p in single.parameters() if p.grad is not None]).sum().sqrt()
    torch.testing.assert_close(grad_norm(sharded), norm, rtol=1e-12, atol=0)
    for name, grad in full_tensors(sharded, lambda p: torch.zeros_like(p) if p.grad is None else p.grad):
        expected = single.get_parameter(name).grad
        expected = torch.zeros_like(grad) if expected is None else expected
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
    assert sharded.kinds["unused"].weight.grad is None


def test_containers_side_outputs_repeated_and_unused_units():
    run_ranks(compare_zoo, 2)


def recompute(rank, size):
    model, plain = fully_shard(transformer(layers=4)), fully_shard(transformer(layers=4))
    model.recompute = 3
    grads, most = [], []
    for each in (model, plain):
        for _ in range(2):
            each.zero_grad()
            loss_sum(each, *batch(0, rank)).backward()
        grads.append({name: g for name, g in full_tensors(each, lambda p: p.grad)})
        most.append(sharding(each).meter)
    assert all(torch.equal(grads[0][name], g) for name, g in grads[1].items())
    assert most[0] == most[1]
    with torch.no_grad():
        for _ in range(2):
            logits = model(batch(0, rank)[0])
    assert not logits.requires_grad and sharding(model).meter.live == 0
    with torch.inference_mode():
        assert torch.equal(model(batch(0, rank)[0]), logits)
    loss_sum(model, *batch(0, rank))  # and no backward pass
    assert sharding(model).meter.live == 0

    # Without a call of the model itself: what is in no unit is gathered once.
    model.zero_grad()
    before = sharding(model).meter.gathered
    with gathered(model):
        logits = model.logits(model.hidden(batch(0, rank)[0][:, :-1]))
        assert model.head_weight.shape == (VOCAB, 8)
        targets, mask = batch(0, rank)[0][:, 1:].flatten(), batch(0, rank)[1].flatten()
        (F.cross_entropy(logits.flatten(0, 1), targets, reduction="none") * mask).sum().backward()
    assert all(torch.equal(grads[1][name], g) for name, g in full_tensors(model, lambda p: p.grad))
    root, *blocks = (sum(flat.bytes for flat in unit.flats) for unit in sharding(model).units)
    assert sharding(model).meter.gathered - before == (root + 2 * sum(blocks)) * (size - 1) // size
    assert sharding(model).meter.live == 0

    # A backward pass that comes after the context finds everything, too.
    model.zero_grad()
    with gathered(model):
        logits = model.logits(model.hidden(batch(0, rank)[0][:, :-1]))
    (F.cross_entropy(logits.flatten(0, 1), targets, reduction="none") * mask).sum().backward()
    assert all(torch.equal(grads[1][name], g) for name, g in full_tensors(model, lambda p: p.grad))
    assert sharding(model).meter.live == root
    with torch.no_grad(), gathered(model):
        assert sharding(model).meter.live == root
    assert sharding(model).meter.live == 0


def test_recomputed_activations_evaluation_and_use_without_forward():
    run_ranks(recompute, 2)


def freeze(model, trained):
    for name, p in model.named_parameters():
        p.requires_grad_(trained(name))
    return model


def frozen(rank, size):
    for trained in (lambda name: name.startswith("blocks.0"), lambda name: ".wq." in name or name == "embed.weight"):
        single, sharded = freeze(transformer(), trained), fully_shard(freeze(transformer(), trained))
        for r in range(size):
            loss_sum(single, *batch(0, r)).backward()
        loss_sum(sharded, *batch(0, rank)).backward()
        state = sharding(sharded)
        whole = {name: p.grad for name, p in single.named_parameters()}
        for flat in state.flats:
            if flat.trained:
                found = flat.gathered(lambda p: p.grad)
                assert all(torch.equal(found[slot.name], whole[slot.name]) for slot in flat.slots)
            else:
                assert all(piece.grad is None for piece in flat.pieces)
        assert state.meter.live == 0 and state.meter.most_live < sum(flat.bytes for flat in state.flats)
        assert state.meter.reduced == sum(flat.bytes for flat in state.flats if flat.trained) * (size - 1) // size


def test_frozen_parameters_send_no_gradient():
    run_ranks(frozen, 2)


def mixed(rank, size):
    model = transformer(torch.float32, tied=True)
    model.compute_dtype = torch.bfloat16
    single = transformer(torch.float32, tied=True)
    single.compute_dtype = torch.bfloat16
    fully_shard(model, compute_dtype=torch.bfloat16)
    kept = {name: p.detach().clone() for name, p in single.named_parameters()}
    for p in single.parameters():
        p.data = p.data.bfloat16()
    total = {name: torch.zeros_like(p) for name, p in kept.items()}
    for r in range(size):
        loss_sum(single, *batch(0, r)).backward()
        for name, p in single.named_parameters():
            total[name] += p.grad.float()
            p.grad = None
    loss_sum(model, *batch(0, rank)).backward()
    grads = dict(full_tensors(model, lambda p: p.grad))
    assert all(g.dtype == torch.float32 and torch.equal(g, total[name]) for name, g in grads.items())
    assert all(torch.equal(p, kept[name]) for name, p in full_tensors(model))
    meter, numel = sharding(model).meter, sum(flat.size * flat.length for flat in sharding(model).flats)
    assert (meter.gathered, meter.reduced) == (numel * 4 * (size - 1) // size, numel * 4 * (size - 1) // size)

    halves = fully_shard(transformer(torch.float32), compute_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    halves.compute_dtype = torch.bfloat16
    loss_sum(halves, *batch(0, rank)).backward()
    assert all(p.grad.dtype == torch.float32 for p in halves.parameters())
    assert sharding(halves).meter.reduced * 2 == sharding(halves).meter.gathered

    summed, averaged = fully_shard(transformer()), fully_shard(transformer(), average=True)
    for each in (summed, averaged):
        loss_sum(each, *batch(0, rank)).backward()
    pairs = zip(summed.parameters(), averaged.parameters(), strict=True)
    assert all(torch.equal(a.grad / size, b.grad) for a, b in pairs)


def test_mixed_precision_and_means():
    run_ranks(mixed, 2)


class Tied(nn.Module):
    """A table that is used in two blocks and in the model itself."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(7, 7, bias=False), nn.Linear(7, 7)])
        self.blocks[1].weight = self.blocks[0].weight
        self.table = self.blocks[0].weight
        self.register_buffer("offset", torch.full((7,), 0.25))

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh() + self.offset
        return (x @ self.table.T).square().sum()


def tied_and_names(rank, size):
    torch.manual_seed(0)
    single = Tied().double()
    torch.manual_seed(0)
    sharded = fully_shard(Tied().double())
    assert [name for name, _ in sharded.named_parameters()] == [name for name, _ in single.named_parameters()]
    for r in range(size):
        single(inputs(r)).backward()
    sharded(inputs(rank)).backward()
    assert torch.equal(dict(full_tensors(sharded, lambda p: p.grad))["table"], single.table.grad)
    state, expected = full_state_dict(sharded), single.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)

    # From the meta device, piece by piece, under any of a tied parameter's names.
    with torch.device("meta"):
        empty = Tied().double()
    with pytest.raises(ValueError, match="on the meta device; say where"):
        fully_shard(empty)
    fully_shard(empty, device="cpu")
    empty._buffers["offset"] = torch.empty(7, dtype=torch.float64)
    load_full(empty, ((name, t) for name, t in expected.items() if name != "table"))
    assert torch.equal(empty(inputs(rank)), single(inputs(rank)))
    for broken, message in [
        ({"tabel": expected["table"]}, "no parameter 'tabel'.*did you mean 'table'"),
        ({"table": torch.zeros(7)}, r"table has shape \(7,\); expected \(7, 7\)"),
        ({"table": expected["table"]}, r"nothing was given for blocks\.1\.bias"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_full(empty, broken)
    with pytest.raises(ValueError, match="cut already"):
        fully_shard(empty)
    with pytest.raises(ValueError, match="class Linear is no module inside"):
        fully_shard(Tied(), [nn.Linear(1, 1)])
    by_name = fully_shard(transformer(), lambda name, module: name.endswith((".mixer", ".ffn", "embed")))
    assert len(sharding(by_name).units) == 1 + 2 * 3 + 1
    loss_sum(by_name, *batch(0, rank)).backward()
    assert sharding(by_name).meter.live == 0


def test_tied_parameters_names_meta_and_errors():
    run_ranks(tied_and_names, 2)


def build_differently(rank, size, how):
    torch.manual_seed(rank if how == "values" else 0)
    model = nn.Sequential(
        nn.Linear(3, 3 + (rank == 1 and how == "shape")), nn.Linear(3, 2, bias=rank != 1 or how != "lacks")
    )
    if how == "frozen" and rank == 1:
        model[1].weight.requires_grad_(False)
    with pytest.raises(ValueError) as error:
        fully_shard(model)
    return str(error.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("values", "rank 1 has other values in 0.weight than rank 0"),
        ("shape", "where rank 1 has parameter 0.weight of shape (4, 3) and float32"),
        ("lacks", "rank 0 has parameter 1.bias of shape (2,) and float32, where rank 1 has nothing more"),
        ("frozen", "where rank 1 has parameter 1.weight of shape (2, 3) and float32 without gradient"),
    ],
)
def test_different_models_are_named_on_every_rank(how, message):
    assert all(message in error for error in run_ranks(build_differently, 2, how))


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(7, 7) for _ in range(3))
        self.fails = ""

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 1 and self.fails == "forward":
                raise RuntimeError("in forward")
            if i == 1 and self.fails == "backward":
                x.register_hook(lambda _: 1 / 0)
        return x.square().sum()


def fail_and_go_on(rank, size):
    torch.manual_seed(0)
    model = fully_shard(Failing().double())
    model(inputs(rank)).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.fails = "forward"
    with pytest.raises(RuntimeError, match="in forward"):
        model(inputs(rank))
    assert sharding(model).meter.live == 0
    assert share(model) == sum(p.nbytes for p in expected)
    model.fails = "backward"
    with pytest.raises(ZeroDivisionError):
        model(inputs(rank)).backward()
    model.fails = ""
    model.zero_grad()
    with torch.no_grad():
        model(inputs(rank))
    model.zero_grad()
    model(inputs(rank)).backward()
    assert sharding(model).meter.live == 0
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_after_an_exception_the_model_is_as_it_was():
    run_ranks(fail_and_go_on, 2)


def compiled(rank, size):
    models = [transformer(torch.float32, layers=2) for _ in range(2)]
    for block in models[0].blocks:
        block.compile(dynamic=False, backend="aot_eager")
    grads = []
    for model in models:
        fully_shard(model)
        for _ in range(2):
            model.zero_grad()
            loss_sum(model, *batch(0, rank)).backward()
        grads.append(dict(full_tensors(model, lambda p: p.grad)))
        assert sharding(model).meter.live == 0
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_are_cut_after_compiling():
    run_ranks(compiled, 2, timeout=400)
