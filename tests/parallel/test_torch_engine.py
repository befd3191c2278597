"""Plans on torch's engine against one process that accumulates all batches, in fp64, with uneven numbers of tokens."""

import pytest
import torch
import torch.nn.functional as F

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, MoEConfig, Transformer
from groundup.model.balance import Balance
from groundup.optim import Adafactor, AdamW, clip_by_global_norm
from groundup.parallel import torch_engine
from groundup.parallel.engines import engine_for
from groundup.parallel.plan import ParallelPlan
from tests.distributed import run_ranks

VOCAB, SEQ, ROWS, BATCHES, CLIP, STEPS = 23, 8, 4, 2, 0.05, 2


def model_of(kind: str) -> Transformer:
    attention = AttentionConfig(4, 2, 4, bias=True, out_bias=True, qk_norm=True, sinks=True)
    balance = Balance(load=0.02, z=0.01) if kind == "experts" else Balance()
    ffn = MoEConfig(4, 2, 12, num_shared=1, balance=balance) if "experts" in kind else MLPConfig(24, bias=True)
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


def alone(kind: str, parts: int, together: int = 1, steps: int = STEPS):
    """Losses, norms and weights of one process; `together` row parts share a batch, as ranks of `expert` do."""
    model = model_of(kind)
    named = list(model.named_parameters())
    optimizer, history = make(named), []
    for step in range(steps):
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


TWO = [  # where `test_parity` does not go: biases, sinks, two batches in a step, states
    ("tied", "data=2 zero=1"),
    ("dense", "data=2 zero=2"),
    ("experts", "shard=2 recompute=true"),
    ("dense", "tensor=2 sequence=true"),
    ("dense", "context=2"),
    ("tied", "pipeline=2 schedule=interleaved chunks=2 microbatches=4"),
    ("experts", "expert=2"),
]
FOUR = [
    ("dense", "data=2 tensor=2"),
    ("dense", "shard=2 tensor=2 sequence=true"),
    ("tied", "data=2 zero=1 pipeline=2 microbatches=2"),
    ("tied", "shard=2 pipeline=2 schedule=interleaved chunks=2 microbatches=2"),
    ("dense", "context=2 pipeline=2 microbatches=4"),
    ("unbalanced experts", "pipeline=2 expert=2 microbatches=2"),
    ("experts", "data=2 zero=2 expert=2"),
]


@pytest.mark.slow
def test_each_axis_on_two_ranks_trains_as_one_process():
    check(TWO, 2)


@pytest.mark.slow
def test_pairs_of_axes_on_four_ranks():
    check(FOUR, 4)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def move(rank, size, kind, engines):
    """One step on each engine, which goes on with what the one before left."""
    weights, state, history = None, {}, []
    for step, (name, text) in enumerate(engines):
        model = model_of(kind)
        if weights is not None:
            torch.nn.init.ones_(model.final_norm.weight)  # what is loaded has to replace it
        engine = engine_for(model, ParallelPlan.parse(text), name)
        engine.optimize(make)
        if weights is not None:
            engine.load_full(iter(weights.items()))
            engine.load_optimizer_state(state)
            assert same(engine.full_state_dict(), weights), text
            found = engine.optimizer_state()
            assert found.keys() == state.keys() and all(same(found[each], state[each]) for each in state), text
        history += train(engine, [step])
        weights, state = engine.full_state_dict(), engine.optimizer_state()
    return history, weights


@pytest.mark.slow
def test_weights_and_states_go_from_plan_to_plan_and_engine_to_engine():
    plans = [
        ("torch", "shard=2 tensor=2"), ("torch", "data=2 zero=1 pipeline=2 microbatches=2"),
        ("groundup", "data=2 tensor=2"), ("torch", "data=2 zero=2 context=2"), ("groundup", "shard=2 context=2"),
    ]  # fmt: skip
    history, weights, _ = alone("tied", 2, steps=len(plans))
    for found, full in run_ranks(move, 4, "tied", plans, timeout=300):
        assert torch.allclose(torch.tensor(found), torch.tensor(history), rtol=1e-12, atol=0)
        assert full.keys() == weights.keys() and all(close(full[name], weights[name]) for name in weights)


class Keep:
    """An optimizer that changes nothing."""

    def __init__(self, kept, named):
        self.kept, self.named = kept, named

    def step(self):
        self.kept.update({name: p.grad.clone() for name, p in self.named})


def one_batch_each(rank, size):
    """(gradients summed by DDP, gradients of one process that accumulates)."""
    engine = torch_engine.apply_plan(model_of("tied"), ParallelPlan(data=size))
    kept = {}
    engine.optimize(lambda named: Keep(kept, named))
    engine.accumulate(batches_of(0, rank)[:1], loss_sum)
    engine.step()
    model = model_of("tied")
    for part in range(size):
        tokens = batches_of(0, part)[0]["tokens"]
        loss_sum(model(tokens[:, :-1]), tokens[:, 1:])[0].backward()
    return kept, {name: p.grad for name, p in model.named_parameters()}


def several(rank, size):
    """What does not need a process of its own."""
    kept, expected = one_batch_each(rank, size)
    assert same(kept, expected)
    compiled(rank, size)
    wrong_calls(size)


def compiled(rank, size):
    """A backend that changes nothing shows that hooks and cuts are where a compiler finds them."""
    blocks = []

    def compile(block):
        blocks.append(block)
        block.compile(backend="eager")

    plain, other = (
        torch_engine.apply_plan(model_of("dense"), ParallelPlan(shard=size), compile=how) for how in (None, compile)
    )
    assert len(blocks) == 4 and [n for n, _ in other.named_parameters()] == [n for n, _ in plain.named_parameters()]
    totals = [engine.accumulate(batches_of(0, rank), loss_sum) for engine in (plain, other)]
    assert totals[0] == totals[1]


def wrong_calls(size):
    engine = torch_engine.apply_plan(model_of("tied"), ParallelPlan(shard=size))
    names = [name for name, _ in model_of("tied").named_parameters()]
    assert [name for name, _ in engine.named_parameters()] == names == list(engine.pieces)
    assert [name for name, _ in engine.modules[0].named_parameters()] == names
    whole = engine.full_state_dict()
    batch = batches_of(0, 0)[0]
    with pytest.raises(ValueError, match="a batch has mask"):
        engine.accumulate([batch | {"mask": batch["tokens"]}], loss_sum)
    engine.accumulate([batch], loss_sum)
    for run, error, message in [
        (lambda: engine.step(), RuntimeError, "call `optimize`"),
        (lambda: engine.optimizer_state(), RuntimeError, "call `optimize`"),
        (lambda: engine.clip(0.0), ValueError, "clip=0.0"),
        (lambda: engine.accumulate([batch], loss_sum), RuntimeError, "summed over ranks already"),
        (lambda: engine.load_full(whole | {"head.wieght": whole["embed.weight"]}), ValueError, "no tensor 'head.wi"),
        (lambda: engine.load_full(whole | {"embed.weight": torch.ones(3)}), ValueError, "embed.weight has shape"),
        (lambda: engine.load_full({"embed.weight": whole["embed.weight"]}), ValueError, "nothing was given for"),
    ]:
        with pytest.raises(error, match=message):
            run()
    engine = torch_engine.apply_plan(model_of("tied"), ParallelPlan(shard=size))
    engine.optimize(lambda named: Adafactor([p for _, p in named], lr=1e-2))
    engine.accumulate([batch], loss_sum)
    engine.step()
    for run, message in [
        (lambda: engine.optimizer_state(), "works element by element"),
        (lambda: engine.load_optimizer_state({"head": {}}), "the model has not: head"),
        (lambda: engine.load_optimizer_state({"embed.weight": {"row": torch.ones(3)}}), "cannot be cut"),
    ]:
        with pytest.raises(ValueError, match=message):
            run()
    with pytest.raises(ValueError, match=r"zero=1 divides a torch.optim.Optimizer; a Keep is none"):
        engine = torch_engine.apply_plan(model_of("tied"), ParallelPlan(data=size, zero=1))
        engine.optimize(lambda named: Keep({}, named))
    engine = torch_engine.apply_plan(model_of("tied"), ParallelPlan(pipeline=size, microbatches=3))
    with pytest.raises(ValueError, match="4 rows cannot be 3 micro-batches"):
        engine.accumulate([batch], loss_sum)
    with pytest.raises(ValueError, match="no stage of a pipeline is the model"):
        engine.backward(lambda model, batch: batch["tokens"].sum(), batch, last=True)
    engine = torch_engine.apply_plan(model_of("tied"), ParallelPlan(data=size))
    engine.backward(lambda model, batch: model.embed.weight.sum(), batch, last=True)
    with pytest.raises(RuntimeError, match=r"not use all trained parameters \(blocks.0.*did not send .* gradients"):
        engine.finish()


def test_sums_are_exact_and_what_a_rank_cannot_do_is_named():
    run_ranks(several, 2)


@pytest.mark.parametrize(
    ("text", "model", "message"),
    [
        ("data=2 shard=2 zero=1", lambda: model_of("dense"), "zero=1 with shard=2, .* use shard=4 without data"),
        ("data=2 recompute=true", lambda: torch.nn.Linear(2, 2), "this Linear has no attribute `recompute`"),
        ("expert=2", lambda: model_of("dense"), "this Transformer has no experts"),
        ("pipeline=4 microbatches=2", lambda: model_of("dense"), "a micro-batch for each of its 4 stages"),
        ("pipeline=2 microbatches=2", lambda: model_of("experts"), "blocks.0.ffn has a balancing loss"),
        ("data=2", lambda: torch.nn.Linear(2, 2, device="meta"), "on the meta device"),
    ],
)
def test_what_does_not_go_together_is_refused(text, model, message):
    with pytest.raises(ValueError, match=message):
        torch_engine.apply_plan(model(), ParallelPlan.parse(text))


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="engine 'troch' is unknown.*torch"):
        engine_for(model_of("dense"), ParallelPlan(), "troch")
