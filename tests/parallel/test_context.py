from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from groundup import kernels
from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.model.balance import Balance
from groundup.model.cross_attention import CrossAttentionConfig
from groundup.model.latent import LatentAttentionConfig
from groundup.model.linear_attention import GatedLinearConfig
from groundup.model.moe import MoEConfig
from groundup.model.position import LearnedPositions
from groundup.model.router import HashRouter
from groundup.parallel import context_ring
from groundup.parallel.context import chunks_of, context_batch, context_parallel, own_part, whole_sequence
from groundup.train.objectives import next_token
from tests.distributed import run_ranks
from tests.thorough import times

STEPS = times(50)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}

# (head counts and widths, options of kernels.attention)
CALLS: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "causal, grouped": ((4, 2, 6, 6), {}),
    "one kv head, other value width": ((3, 1, 6, 4), {"scale": 0.3}),
    "window": ((2, 2, 6, 6), {"window": 3}),
    "soft cap": ((4, 2, 6, 6), {"softcap": 2.0}),
    "documents": ((4, 2, 6, 6), {"segments": True}),
    "window with first tokens": ((2, 1, 6, 6), {"window": 2, "sink_tokens": 1}),
    "documents, window with first tokens": ((2, 1, 6, 6), {"window": 2, "sink_tokens": 2, "segments": True}),
    "padding": ((4, 2, 6, 6), {"padding": True}),
    "encoder": ((4, 2, 6, 6), {"causal": False, "window": 4, "padding": True}),
    "sinks": ((4, 2, 6, 6), {"sinks": True, "padding": True}),
    "slopes": ((4, 2, 6, 6), {"slopes": torch.tensor([0.5, 0.25, 0.1, 0.0])}),
}


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = kernels.attention

    def forward(self, *args, **options):
        return self.attend(*args, **options)


def random(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


def call_differences(rank, size, dtype, heads, kv_heads, d_head, d_value, method, options):
    """Largest relative differences of output and gradients from attention on one process."""
    options, rows, seq = dict(options), 3, 6 * size
    widths = ((heads, d_head), (kv_heads, d_head), (kv_heads, d_value))
    whole = [random(rows, seq, *width, seed=i, dtype=dtype).requires_grad_() for i, width in enumerate(widths)]
    own = [own_part(x.detach()).requires_grad_() for x in whole]
    positions = torch.arange(seq).repeat(rows, 1)
    if options.pop("padding", False):
        positions[1, 5:] = -1
        positions[2] = -1
    if options.pop("segments", False):
        ids = (torch.arange(seq) // 5).repeat(rows, 1)
        options |= {"q_segments": ids, "k_segments": ids}
    sinks = [random(heads, seed=9, dtype=dtype).requires_grad_() for _ in range(2)]
    learned = options.pop("sinks", False)
    here = {name: own_part(x) if name.endswith("segments") else x for name, x in options.items()}
    if learned:
        options["sinks"], here["sinks"] = sinks
    expected = kernels.attention(*whole, positions, positions, **options)
    expected.sin().sum().backward()
    found = context_parallel(Attends(), method=method)(*own, own_part(positions), own_part(positions), **here)
    found.sin().sum().backward()
    assert torch.equal(whole_sequence(own_part(expected)), expected)
    pairs = [(found, own_part(expected))] + [(a.grad, own_part(b.grad)) for a, b in zip(own, whole, strict=True)]
    if learned:
        dist.all_reduce(sinks[1].grad)
        pairs.append((sinks[1].grad, sinks[0].grad))
    return [difference(a, b) for a, b in pairs]


def compare_calls(rank, size):
    return {
        (name, method, dtype): call_differences(rank, size, dtype, *heads, method, options)
        for name, (heads, options) in CALLS.items()
        for method in ("ring", "gather")
        for dtype in TOLERANCE
    }


@pytest.mark.parametrize("size", [1, 2, 4])
def test_attention_over_ranks_equals_attention_on_one(size):
    for rank in run_ranks(compare_calls, size):
        for (name, method, dtype), errors in rank.items():
            assert max(errors) < TOLERANCE[dtype], (name, method, dtype, errors)


def model_of(name: str, dtype: torch.dtype) -> Transformer:
    near = AttentionConfig(4, 2, 4, window=5, softcap=3.0, qk_norm=True)
    options: dict[str, Any] = {"tie_embeddings": True}
    match name:
        case "windows":
            blocks = (BlockConfig(near, MLPConfig(16)), BlockConfig(AttentionConfig(4, 1, 4), MLPConfig(16)))
        case "latent":
            blocks = (BlockConfig(LatentAttentionConfig(2, 6, 4, 2, 4), MLPConfig(16), placement="sandwich"),)
        case "experts":
            balance = Balance(load=0.02, sequence=0.01, z=0.001)
            blocks = (BlockConfig(near, MoEConfig(4, 2, 12, num_shared=1, balance=balance)),)
        case "hash":
            blocks = (BlockConfig(AttentionConfig(4, 4, 4, rope=None), MoEConfig(4, 1, 12, router=HashRouter())),)
            options["positions"] = LearnedPositions(40)
    model = Transformer(ModelConfig(vocab_size=23, d_model=8, num_layers=2, blocks=blocks, **options)).to(dtype)
    model.compute_dtype = dtype
    return model


def batch(step: int, seq: int, rows: int = 3) -> dict[str, torch.Tensor]:
    """Rows that count up in twos or threes, with weights, and packed documents in every other batch."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, 23, (rows, 1), generator=generator)
    tokens = (starts + torch.arange(seq + 1) * torch.randint(1, 3, (rows, 1), generator=generator)) % 23
    mask = (torch.rand(tokens.shape, generator=generator) < 0.8).float()
    made = {"tokens": tokens, "mask": mask}
    return made | {"segments": (torch.arange(seq + 1) // 7).repeat(rows, 1)} if step % 2 else made


def compare_models(rank, size):
    found = {}
    for name in ("windows", "latent", "experts", "hash"):
        for method in ("ring", "gather"):
            for step in (0, 1):
                single = model_of(name, torch.float64)
                spread = context_parallel(model_of(name, torch.float64), method=method)
                spread.recompute = step == 1
                given = batch(step, 8 * size)
                expected, loss = next_token(single, given), next_token(spread, context_batch(given))
                expected.total.backward()
                loss.total.backward()
                sums = torch.stack([loss.total.detach(), loss.weight.double()])
                dist.all_reduce(sums)
                errors = {"loss": (sums[0] / expected.total - 1).abs().item()}
                assert sums[1] == expected.weight
                for (path, a), b in zip(spread.named_parameters(), single.parameters(), strict=True):
                    dist.all_reduce(a.grad)
                    errors[path] = difference(a.grad, b.grad)
                found[name, method, step] = errors
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_losses_and_gradients_of_models_equal_one_process(size):
    for rank in run_ranks(compare_models, size, timeout=120):
        for key, errors in rank.items():
            assert max(errors.values()) < 1e-12, (key, errors)


def train(model: nn.Module, part: Any, summed: Any) -> list[float]:
    """The mean loss of each of STEPS; `summed` adds a tensor up over ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = next_token(model, part(batch(step, 16)))
        loss.total.backward()
        total, weight = summed(torch.stack([loss.total.detach().double(), loss.weight.double()])).unbind()
        for p in model.parameters():
            p.grad = summed(p.grad) / weight.to(p.dtype)
        optimizer.step()
        losses.append((total / weight).item())
    return losses


def sum_ranks(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x


def train_both(rank, size, dtype, name, method):
    found = train(context_parallel(model_of(name, dtype), method=method), context_batch, sum_ranks)
    return found, None if rank else train(model_of(name, dtype), lambda given: given, lambda x: x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size, name, method", [(2, "experts", "ring")])
def test_many_steps_equal_one_process(size, name, method, dtype):
    (found, expected), *others = run_ranks(train_both, size, dtype, name, method, timeout=600)
    assert all(other == found for other, _ in others)
    assert expected[-1] < (0.7 if STEPS >= 200 else 1.0) * expected[0]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < TOLERANCE[dtype]


def count_bytes_and_blocks(rank, size, method):
    """(bytes of keys, values and their gradients that left this rank, of positions, blocks of scores computed)."""
    sent, small, blocks = [], [], []
    real = {name: getattr(dist, name) for name in ("batch_isend_irecv", "all_gather", "reduce_scatter")}
    scores = context_ring._Scores.__call__

    def batch_isend_irecv(operations):
        sent.extend(operation.tensor.nbytes for operation in operations if operation.op is dist.isend)
        return real["batch_isend_irecv"](operations)

    def all_gather(parts, x, **options):
        (sent if x.is_floating_point() else small).append((size - 1) * x.nbytes)
        return real["all_gather"](parts, x, **options)

    def reduce_scatter(total, parts, **options):
        sent.append((size - 1) * total.nbytes)
        return real["reduce_scatter"](total, parts, **options)

    for wrapper in (batch_isend_irecv, all_gather, reduce_scatter):
        setattr(dist, wrapper.__name__, wrapper)
    context_ring._Scores.__call__ = lambda *args: blocks.append(1) or scores(*args)
    try:
        q, k, v = (random(2, 8, heads, d, seed=0, dtype=torch.float32) for heads, d in ((4, 6), (2, 6), (2, 4)))
        positions = own_part(torch.arange(16 * size)[None])
        inputs = [x.requires_grad_() for x in (q, k, v)]
        out = context_parallel(Attends(), method=method)(*inputs, positions, positions)
        forward = sum(sent)
        out.sum().backward()
    finally:
        context_ring._Scores.__call__ = scores
        for name, function in real.items():
            setattr(dist, name, function)
    return forward, sum(sent) - forward, sum(small), len(blocks)


@pytest.mark.parametrize("size", [2, 4])
def test_volume_and_work_are_what_the_formulas_say(size):
    share = 2 * 8 * 2 * (6 + 4) * 4  # rows, tokens, kv heads, widths, bytes
    passes = size - 1
    blocks = 2 * size + 1  # of 4 N, in each direction
    positions = passes * 2 * 8 * 8
    for result in run_ranks(count_bytes_and_blocks, size, "ring"):
        assert result == (passes * share, 2 * passes * share, positions, 2 * blocks)
    for result in run_ranks(count_bytes_and_blocks, size, "gather"):
        assert result == (passes * share, passes * share, positions, 0)


def refusals(rank, size):
    attention = AttentionConfig(2, 2, 4)

    def model(block: BlockConfig) -> Transformer:
        return Transformer(ModelConfig(vocab_size=9, d_model=8, num_layers=2, blocks=(block,)))

    with pytest.raises(ValueError, match=r"blocks\.0\.mixer is a GatedLinear, which reads other tokens"):
        context_parallel(model(BlockConfig(GatedLinearConfig(2, 4, 4), MLPConfig(8))))
    with pytest.raises(ValueError, match=r"blocks\.0\.cross is a CrossAttention"):
        context_parallel(model(BlockConfig(attention, MLPConfig(8), cross=CrossAttentionConfig(2, 2, 4))))
    with pytest.raises(ValueError, match="this Linear has no attention"):
        context_parallel(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="method 'rign' is unknown.*ring"):
        context_parallel(Attends(), method="rign")  # type: ignore[arg-type]
    for method in ("ring", "gather"):
        spread = context_parallel(model(BlockConfig(attention, MLPConfig(8))), method=method)
        with pytest.raises(ValueError, match="must be given the positions of its tokens"):
            spread(torch.zeros(2, 4, dtype=torch.long))
        with pytest.raises(ValueError, match="a batch of 3 rows, where each rank has two chunks"):
            spread(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="10 tokens cannot be divided into 4 chunks.*use sequences of 8 or 12"):
        context_batch({"tokens": torch.zeros(1, 11)})
    with pytest.raises(ValueError, match=r"seed is \(1,\) beside tokens of \(1, 9\)"):
        context_batch({"tokens": torch.zeros(1, 9), "seed": torch.zeros(1)})
    return context_batch({"tokens": torch.arange(18).view(2, 9)})


def test_what_cannot_be_spread_is_refused_and_a_batch_is_dealt_by_hand():
    first, second = run_ranks(refusals, 2)
    assert first["tokens"].tolist() == [[0, 1, 2], [9, 10, 11], [6, 7, 8], [15, 16, 17]]
    assert first["positions"].tolist() == [[0, 1, 2], [0, 1, 2], [6, 7, 8], [6, 7, 8]]
    assert second["tokens"].tolist() == [[2, 3, 4], [11, 12, 13], [4, 5, 6], [13, 14, 15]]


def test_every_rank_has_an_early_and_a_late_chunk():
    for size in (1, 2, 3, 8):
        chunks = [chunks_of(rank, size) for rank in range(size)]
        assert sorted(c for pair in chunks for c in pair) == list(range(2 * size))
        # A chunk sees itself and all before it.
        assert {first + second + 2 for first, second in chunks} == {2 * size + 1}
