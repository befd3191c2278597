"""The trainer over a model that ranks divide by a plan: one run, gone on with under one plan after the other."""

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from groundup.model import (
    AttentionConfig,
    BlockConfig,
    CrossAttentionConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    MultiTokenConfig,
    TopKRouter,
    Transformer,
)
from groundup.optim import AdamW, Muon, Optimizers
from groundup.optim.groups import split_for_muon
from groundup.parallel.engines import ENGINES, engine_for
from groundup.parallel.plan import ParallelPlan
from groundup.train import next_token, train
from groundup.train.divided import check_replicas
from groundup.train.objectives import Loss, multi_token
from groundup.train.recorder import Recorder
from tests.distributed import run_ranks
from tests.train.small import VOCAB, Batches, batch

PLANS = [  # each goes on with what the one before left, often the other engine's
    (text, engine)
    for text in ("data=2", "data=2 zero=1", "shard=2", "expert=2", "tensor=2", "context=2", "data=2 zero=2")
    for engine in ("torch", "groundup")
] + [("shard=2 recompute=true", "torch"), ("tensor=2 sequence=true", "torch")]
EACH = 2  # updates under each plan
END = EACH * len(PLANS) + EACH


def experts() -> Transformer:
    """With a balancing bias, which moves by all ranks' loads, and without losses that each rank has of its own."""
    ffn = MoEConfig(4, 2, 16, router=TopKRouter("sigmoid", bias_rate=0.01))
    model = Transformer(ModelConfig(VOCAB, 16, 2, (BlockConfig(AttentionConfig(2, 2, 8), ffn),), tie_embeddings=True))
    model = model.to(torch.float64)
    model.compute_dtype = torch.float64
    return model


def masked(number: int) -> dict[str, torch.Tensor]:
    mask = (
        torch.rand(4, 9, generator=torch.Generator().manual_seed(number)) < torch.tensor([0.9, 0.7, 0.4, 0.2])[:, None]
    )
    return batch(number) | {"mask": mask.double()}


class Rows(Batches):
    """A part of the rows of each batch."""

    tokens_per_batch = 4 * 8

    def __init__(self, part: int = 0, parts: int = 1):
        super().__init__()
        self.part, self.parts = part, parts

    def __next__(self):
        self.at += 1
        return {name: tensor.tensor_split(self.parts)[self.part] for name, tensor in masked(self.at - 1).items()}


def adamw(model: nn.Module) -> AdamW:
    return adamw_over(list(model.named_parameters()))


def adamw_over(named) -> AdamW:
    return AdamW([p for _, p in named], lr=3e-3, eps=1e-4)


def alone(steps: int, **options):
    model = experts()
    return model, train(model, Rows(), next_token, adamw(model), steps, progress=False, **options)


def train_under(text: str, name: str, steps: int, folder: Path | None, objective=next_token, make=experts, **options):
    engine = engine_for(make(), ParallelPlan.parse(text), name)
    model = engine.modules[0]
    engine.optimize(adamw_over)
    rows = Rows(engine.mesh.rows, engine.mesh.row_parts)
    settings = {"run_dir": folder, "resume": folder is not None, "progress": False, "micro_batches": 2} | options
    return engine, train(model, rows, objective, engine.optimizer, steps, engine=engine, **settings)


def one_plan_after_the_other(rank, size, folder):
    for number, (text, name) in enumerate(PLANS):
        engine, run = train_under(text, name, EACH * (number + 1), Path(folder), checkpoint_every=EACH)
    return engine.full_state_dict(), run.losses, run.tokens


def test_a_run_goes_on_under_any_plan_of_either_engine_and_ends_on_one_process(tmp_path):
    expected, run = alone(END)
    for weights, losses, tokens in run_ranks(one_plan_after_the_other, 2, str(tmp_path), timeout=300):
        assert losses == pytest.approx(run.losses[: len(losses)], rel=1e-11, abs=0) and len(losses) == END - EACH
        assert tokens == 32 * (END - EACH) and weights["blocks.0.ffn.router.bias"].abs().max() > 0
    ended, last = alone(END, run_dir=tmp_path, resume=True)
    assert last.losses == pytest.approx(run.losses, rel=1e-11, abs=0)
    for name, tensor in expected.state_dict().items():
        assert (ended.state_dict()[name] - tensor).norm() <= 1e-11 * tensor.norm(), name


def poisoned(rank, size):
    """A loss that is not a number in one step on one rank, and weights that lose a bit on one rank."""

    def objective(model, b):
        loss = next_token(model, b)
        bad = rank == 1 and torch.equal(b["tokens"], batch(2)["tokens"][2:])
        return Loss(loss.total * (math.nan if bad else 1.0), loss.weight, loss.metrics)

    for name in ENGINES:
        engine, run = train_under("shard=2", name, 3, None, objective, micro_batches=1)
        assert run.skipped == 1 and run.step == 3
        for text, says in (("data=2", "ranks have different bits in"), ("context=2", "different bits in embed.weight")):
            engine, _ = train_under(text, name, 1, None)
            if rank == 1:
                dict(engine.named_parameters())["embed.weight"].data[0, 0] += 1.0
            with pytest.raises(RuntimeError, match=says):
                check_replicas(engine)
    engine = engine_for(experts(), ParallelPlan(tensor=2))
    model = engine.modules[0]
    engine.optimize(adamw_over)
    for options, says in (
        ({"micro_batches": "auto"}, "give a number"),
        ({"recorder": Recorder()}, "whole gradients"),
    ):
        with pytest.raises(ValueError, match=says):
            train(model, Rows(), next_token, engine.optimizer, 1, engine=engine, **options)
    with pytest.raises(ValueError, match="model and optimizer are"):
        train(model, Rows(), next_token, adamw(model), 1, engine=engine)
    for name in ENGINES:
        for text, make, says in (
            ("tensor=2", CutHead, "cuts head.weight over tensor, but objectives read the head whole"),
            ("shard=2", translator, "an EncoderDecoder reads parts of blocks without calling the blocks, and shard=2"),
        ):
            with pytest.raises(ValueError, match=says):
                train_under(text, name, 1, None, make=make)
    found = [train_under("shard=2", name, 2, None, multi_token, make=further)[1].losses for name in ENGINES]
    return several_optimizers_divided(), found


def several_optimizers_divided() -> bool:
    """Whether they give the bits of whole ones: sums have two terms, and nothing is cut."""
    expected = trained_with_muon("data=2", "groundup")
    return all(
        torch.equal(tensor, expected[name])
        for engine in ENGINES
        for name, tensor in trained_with_muon("data=2 zero=1", engine).items()
    )


def further() -> Transformer:
    """Modules for further tokens, which are parts and no units: their own modules are called one by one."""
    block = BlockConfig(AttentionConfig(2, 2, 8), MLPConfig(24))
    model = Transformer(ModelConfig(VOCAB, 16, 1, (block,), multi_token=MultiTokenConfig(2))).to(torch.float64)
    model.compute_dtype = torch.float64
    return model


def translator() -> EncoderDecoder:
    block = BlockConfig(AttentionConfig(2, 2, 8), None)
    reader = replace(block, mixer=replace(block.mixer, causal=False))
    writer = replace(block, cross=CrossAttentionConfig(2, 2, 8))
    return EncoderDecoder(EncoderDecoderConfig(*(ModelConfig(VOCAB, 16, 1, (each,)) for each in (reader, writer))))


class CutHead(Transformer):
    """As a user may write one, whose head ranks of tensor parallelism share."""

    shard: ClassVar = {"head": "col"}

    def __init__(self) -> None:
        super().__init__(ModelConfig(VOCAB + 1, 16, 1, (BlockConfig(AttentionConfig(2, 2, 8), None),)))


def muon_of(named) -> Optimizers:
    matrices, rest = split_for_muon(named)
    return Optimizers([Muon(matrices), AdamW([p for _, p in rest], lr=1e-3)])


def trained_with_muon(text: str, name: str) -> dict[str, torch.Tensor]:
    engine = engine_for(experts(), ParallelPlan.parse(text), name)
    engine.optimize(muon_of)
    rows = Rows(engine.mesh.rows, engine.mesh.row_parts)
    train(engine.modules[0], rows, next_token, engine.optimizer, 2, engine=engine, progress=False, clip=None)
    return engine.full_state_dict()


def test_a_bad_step_is_skipped_by_all_and_what_cannot_be_is_refused():
    model = further()
    expected = train(model, Rows(), multi_token, adamw(model), 2, progress=False).losses
    for same_bits, found in run_ranks(poisoned, 2):
        assert same_bits
        assert all(losses == pytest.approx(expected, rel=1e-12, abs=0) for losses in found)
