"""Plans on torch's engine against one process that accumulates all batches, in fp64, with uneven numbers of tokens."""

import pytest
import torch
import torch.nn.functional as F

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, MoEConfig, Transformer
from groundup.model.balance import Balance
from groundup.optim import AdamW, clip_by_global_norm
from groundup.parallel import torch_engine
from groundup.parallel.plan import ParallelPlan
from tests.distributed import run_ranks

VOCAB, SEQ, ROWS, BATCHES, CLIP, STEPS = 23, 8, 4, 2, 0.5, 3


def model_of(kind: str) -> Transformer:
    attention = AttentionConfig(4, 2, 4, bias=True, out_bias=True, qk_norm=True, sinks=True)
    moe = MoEConfig(4, 2, 12, num_shared=1, balance=Balance(load=0.02, z=0.01))
    ffn = moe if kind == "experts" else MLPConfig(24, bias=True)
    config = ModelConfig(VOCAB, 16, 4, (BlockConfig(attention, ffn),), tie_embeddings=kind == "tied")
    model = Transformer(config).double()
    model.compute_dtype = torch.float64
    for p in model.parameters():  # zeros and ones would hide what is summed twice
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel()))
    return model


def batches_of(step: int, part: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(100 * step + part)
    found = []
    for _ in range(BATCHES):
        tokens = torch.randint(1, VOCAB, (ROWS, SEQ + 1), generator=generator)
        tokens[torch.rand(tokens.shape, generator=generator) < 0.3 * (part % 3)] = 0
        found.append({"tokens": tokens})
    return found


def loss_sum(logits, targets):
    each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    counts = targets.flatten() > 0
    return (each * counts).sum(), counts.sum()


def make(named):
    decayed, others = [p for n, p in named if p.dim() > 1], [p for n, p in named if p.dim() < 2]
    return AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=1e-2)


def alone(kind: str, parts: int, together: int = 1):
    """Losses, norms and weights of one process; `together` row parts share a batch, as ranks of `expert` do."""
    model = model_of(kind)
    named = list(model.named_parameters())
    optimizer, history = make(named), []
    for step in range(STEPS):
        total, weight = 0.0, 0.0
        each = [batches_of(step, part) for part in range(parts)]
        for first in range(0, parts, together):
            for number in range(BATCHES):
                tokens = torch.cat([each[part][number]["tokens"] for part in range(first, first + together)])
                auxiliary = []
                logits = model.logits(model.hidden(tokens[:, :-1], auxiliary=auxiliary))
                nats, count = loss_sum(logits, tokens[:, 1:])
                nats = nats + count * sum(auxiliary)
                nats.backward()
                total, weight = total + nats.item(), weight + count.item()
        norm = clip_by_global_norm(model.parameters(), CLIP, divisor=weight)
        optimizer.step()
        model.zero_grad()
        history.append((total, weight, norm.item()))
    state = {name: {key: t.clone() for key, t in optimizer.state[p].items()} for name, p in named}
    return history, {name: t.detach() for name, t in model.state_dict().items()}, state


def train(engine, steps):
    history = []
    for step in steps:
        total, weight = engine.accumulate(batches_of(step, engine.mesh.rows), loss_sum)
        history.append((total, weight, engine.step(divisor=weight, clip=CLIP)))
    return history


def run_plans(rank, size, cases):
    found = []
    for kind, text in cases:
        engine = torch_engine.apply_plan(model_of(kind), ParallelPlan.parse(text))
        engine.optimize(make)
        history = train(engine, range(STEPS))
        found.append((history, engine.full_state_dict(), engine.optimizer_state()))
    return found


def close(found, expected):
    scale = max(expected.abs().max().item(), 1e-3)
    return (found - expected).abs().max().item() <= 1e-12 * scale


def check(cases, size):
    for (kind, text), *ranks in zip(cases, *run_ranks(run_plans, size, cases, timeout=300), strict=True):
        plan = ParallelPlan.parse(text)
        history, weights, state = alone(kind, plan.data * plan.shard * plan.expert, plan.expert)
        for found, full, states in ranks:
            assert torch.allclose(torch.tensor(found), torch.tensor(history), rtol=1e-12, atol=0), text
            assert full.keys() == weights.keys(), text
            for name, tensor in weights.items():
                if tensor.is_floating_point() and not name.endswith(("load", "dropped")):
                    assert close(full[name], tensor), (text, name, (full[name] - tensor).abs().max())
            assert states.keys() == state.keys()
            for name, each in state.items():
                assert all(close(states[name][key], t) for key, t in each.items()), (text, name)


TWO = [
    ("dense", "data=2"),
    ("tied", "data=2 zero=1"),
    ("dense", "data=2 zero=2"),
    ("tied", "shard=2"),
    ("dense", "shard=2 recompute=true"),
    ("dense", "tensor=2"),
    ("tied", "tensor=2 sequence=true"),
    ("dense", "context=2"),
    ("tied", "pipeline=2 schedule=gpipe microbatches=2"),
    ("dense", "pipeline=2 microbatches=4"),
    ("tied", "pipeline=2 schedule=interleaved chunks=2 microbatches=4"),
    ("experts", "expert=2"),
    ("experts", "shard=2"),
]


@pytest.mark.parametrize("case", TWO, ids=lambda case: case[1])
def test_two_ranks_train_as_one_process(case):
    check([case], 2)


FOUR = [
    ("dense", "data=2 tensor=2"),
    ("tied", "data=2 shard=2"),
    ("dense", "shard=2 tensor=2 sequence=true"),
    ("dense", "data=2 pipeline=2 microbatches=2"),
    ("tied", "shard=2 pipeline=2 schedule=interleaved chunks=2 microbatches=2"),
    ("tied", "data=2 zero=1 pipeline=2 microbatches=2"),
    ("tied", "tensor=2 pipeline=2 schedule=gpipe microbatches=2"),
    ("dense", "data=2 context=2"),
    ("dense", "context=2 pipeline=2 microbatches=4"),
    ("dense", "context=2 tensor=2 sequence=true"),
    ("experts", "shard=2 expert=2"),
    ("experts", "data=2 zero=2 expert=2"),
    ("dense", "shard=4"),
]


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case[1])
def test_four_ranks_train_as_one_process(case):
    check([case], 4)
