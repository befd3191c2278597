"""What a rank holds in training is the ledger's, divided as the strategy says, within five per cent: parameters,
gradients, AdamW's states, and what the forward pass keeps for the backward pass.

    N ranks            parameters   gradients   states      activations
    data               all          all         all         all of the rank's own rows
    zero 1             all          all         1 / N       "
    zero 2             all          1 / N       1 / N       "
    shard              1 / N        1 / N       1 / N       "
    tensor             those of a model with 1 / N of heads and channels, and embedding and head whole
    pipeline           those of 1 / N of the layers, with embedding or head at the ends
"""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from groundup import presets
from groundup.accounting.memory import training_memory
from groundup.accounting.placement import cut
from groundup.model import Transformer
from groundup.parallel import DDP, Pipeline, ZeRO, fully_shard, gathered, split_blocks, tensor_parallel
from groundup.parallel.fsdp import sharding
from tests.distributed import run_ranks

LAYERS, VOCAB, D_MODEL, ROWS, SEQ = 8, 96, 48, 2, 16
CONFIG = presets.llama(vocab_size=VOCAB, d_model=D_MODEL, num_layers=LAYERS, num_heads=4, d_ff=128, context_length=SEQ)


def transformer() -> Transformer:
    model = Transformer(CONFIG)
    model.init_weights(seed=0)
    return model


def texts(seed=0):
    return torch.randint(VOCAB, (ROWS, SEQ + 1), generator=torch.Generator().manual_seed(seed))


def kept_by(model, whole=()):
    """Bytes that the forward pass to the last hidden states keeps, but for parameters."""
    own = {p.untyped_storage()._cdata for p in [*model.parameters(), *whole]}
    kept, alive = {}, []

    def pack(t):
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        hidden = model.hidden(texts()[:, :-1])
    del hidden
    return sum(kept.values())


def train(model):
    tokens = texts()
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def held(params, states):
    """(parameters, gradients, states) in bytes now, and what states are when `states` has been called."""
    params = list(params)
    before = sum(p.nbytes for p in params), sum(p.grad.nbytes for p in params if p.grad is not None)
    return *before, sum(t.nbytes for t in states() if t.ndim)


def stepped(optimizer):
    def states():
        optimizer.step()
        return [t for state in optimizer.state.values() for t in state.values()]

    return states


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-3)


def data(rank, size):
    model = transformer()
    kept = kept_by(model)
    ddp = DDP(model)
    train(model)
    ddp.finish()
    return *held(model.parameters(), stepped(adamw(model.parameters()))), kept


def zero(rank, size, stage):
    model = transformer()
    zero = ZeRO(model, adamw(model.parameters()), stage=stage)
    train(model)

    def states():
        zero.finish()
        zero.step()
        return [t for state in zero.optimizer.state.values() for t in state.values()]

    return held(model.parameters(), states)


def shard(rank, size):
    model = fully_shard(transformer())
    with gathered(model):
        kept = kept_by(model, [flat.buffer for flat in sharding(model).flats])
    train(model)
    return *held(model.parameters(), stepped(adamw(model.parameters()))), kept


def tensor(rank, size):
    model = tensor_parallel(transformer())
    kept = kept_by(model)
    train(model)
    return *held(model.parameters(), stepped(adamw(model.parameters()))), kept


def pipeline(rank, size):
    stage = split_blocks(transformer(), size)[rank]
    batches = [texts(seed) for seed in range(size)]
    Pipeline(stage, "1f1b", size).step(
        [tokens[:, :-1] for tokens in batches],
        lambda logits, i: F.cross_entropy(logits.flatten(0, 1), batches[i][:, 1:].flatten()),
    )
    return held(stage.parameters(), stepped(adamw(stage.parameters())))


def every_strategy(rank, size):
    return {
        "data": data(rank, size),
        "zero 1": zero(rank, size, 1),
        "zero 2": zero(rank, size, 2),
        "shard": shard(rank, size),
        "tensor": tensor(rank, size),
        "pipeline": pipeline(rank, size),
    }


def of_ledger(config):
    ledger = training_memory(config, ROWS, SEQ, optimizer_states="adamw")
    return ledger.parameters, ledger.gradients, ledger.optimizer, ledger.activations


def expected(size, rank):
    """By strategy, from the ledgers of the whole model, of one tensor-parallel rank's, and of a stage."""
    parameters, gradients, states, activations = of_ledger(CONFIG)
    table = 4 * VOCAB * D_MODEL
    ends = table + (4 * D_MODEL if rank == size - 1 else 0)  # embedding, or final norm and head
    blocks = (parameters - 2 * table - 4 * D_MODEL) // size + (ends if rank in (0, size - 1) else 0)
    return {
        "data": (parameters, gradients, states, activations),
        "zero 1": (parameters, gradients, states / size),
        "zero 2": (parameters, gradients / size, states / size),
        "shard": (parameters / size, gradients / size, states / size, activations),
        "tensor": of_ledger(cut(CONFIG, size)),
        "pipeline": (blocks, blocks, 2 * blocks),
    }


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_holds_what_the_ledger_says(size):
    for rank, found in enumerate(run_ranks(every_strategy, size, timeout=120)):
        for strategy, wanted in expected(size, rank).items():
            assert found[strategy] == pytest.approx(wanted, rel=0.05), (strategy, rank)
