"""The pretraining stage's parts: a fair start, every parameter in exactly one optimizer, hooks that share steps."""

from dataclasses import replace

import pytest
import torch

from groundup import data
from groundup.accounting.hardware import Machine
from groundup.accounting.plan import TextFacts, Wishes, optimizer_states, plan
from groundup.build.pretrain import _hooks, checkpoint_steps, make_loader, make_optimizer, schedule
from groundup.model import Transformer
from groundup.model.identity_start import start_as_identity
from groundup.optim import ClockDecay
from groundup.tokenizer import Tokenizer
from tests.build.conftest import story

MACHINE = Machine("cpu", "some", 1, "fp32", {"fp32 x1": 1e11}, 1e10, 2**34)
FACTS = TextFacts(60_000, 10_000, 30, 2.0)
PLAN = plan(FACTS, MACHINE, 5.0, Wishes(vocab_size=300, d_model=64, num_layers=2, context_length=32, batch_size=4))[0]


@pytest.fixture
def model():
    model = Transformer(PLAN.model)
    start_as_identity(model, seed=1)
    return model


def test_every_parameter_has_one_optimizer_and_only_matrices_decay(model):
    owned = [
        (id(p), group["weight_decay"]) for group in make_optimizer(model, PLAN).param_groups for p in group["params"]
    ]
    assert sorted(i for i, _ in owned) == sorted(id(p) for p in model.parameters())
    decayed = {i for i, decay in owned if decay}
    assert decayed == {id(p) for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}


def test_a_share_lowers_every_rate(model):
    full, part = make_optimizer(model, PLAN), make_optimizer(model, PLAN, share=0.1)
    assert all(b["lr"] < a["lr"] for a, b in zip(full.param_groups, part.param_groups, strict=True))


def test_hooks_that_come_equally_often_are_all_called():
    calls = []
    hooks = _hooks(
        (5, lambda *a: calls.append("a")), (5, lambda *a: calls.append("b")), (7, lambda *a: calls.append("c"))
    )
    assert hooks.keys() == {5, 7}
    hooks[5](5, None, None)
    assert calls == ["a", "b"]


def test_the_clock_ends_training_unless_the_passes_do():
    assert isinstance(schedule(PLAN, None), ClockDecay)
    by_steps = schedule(PLAN, 100)
    assert by_steps(50) == 1.0
    assert by_steps(99) < 0.05


@pytest.mark.parametrize(("sentences", "masked"), [(4, True), (4000, False)])
def test_boundaries_are_masked_where_documents_are_short(tmp_path, sentences, masked):
    documents = [story(i, sentences) for i in range(3)]
    tokenizer = Tokenizer.train_from_iterator(documents, 300, ["<|endoftext|>"])
    data.write_shards(documents, tokenizer, tmp_path / "shards")
    assert make_loader(tmp_path / "shards", PLAN, seed=0).document_masks is masked


def test_checkpoints_come_by_the_minute_and_more_often_in_short_runs():
    slow = replace(PLAN, seconds_per_step=0.5)
    assert checkpoint_steps(replace(slow, train_seconds=6000.0)) == 120
    assert checkpoint_steps(replace(slow, train_seconds=40.0)) == 8
    assert checkpoint_steps(replace(slow, train_seconds=0.1)) == 1


def test_the_planner_counts_the_states_that_the_optimizers_keep(model):
    optimizer = make_optimizer(model, PLAN)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = sum(t.numel() for part in optimizer.optimizers for s in part.state.values() for t in s.values() if t.ndim)
    assert optimizer_states(PLAN.model) == pytest.approx(kept / PLAN.parameters, rel=0.01)  # norms are AdamW's
