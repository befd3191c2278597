"""What every strategy sends in a training step of one model, counted where it leaves, is its formula to the byte.

N ranks, L layers, P bytes of parameters as of gradients, X bytes of one rank's activations, S bytes of its keys and
values. Of all ranks together:

    data                2 (N - 1) (P + a number per parameter)
    zero 1 and 2        (N - 1) (P + a number per parameter)  to the owners, and (N - 1) P back
    shard               3 (N - 1) P, with what is padded
    tensor              4 L x 2 (N - 1) X
    sequence            as much; 2 (N - 1) X at the ends of the stream; gradients of norms
    pipeline            2 (N - 1) X for each micro-batch, and a header for each link
    context             ring: 3 (N - 1) S N L; gather: 2 (N - 1) S N L; and every token's position in each layer
    expert              4 rows for each pair of token and expert that is elsewhere, and the counts
"""

import pytest
import torch
import torch.nn.functional as F

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, MoEConfig, Transformer
from groundup.parallel import (
    DDP,
    Pipeline,
    ZeRO,
    context_batch,
    context_parallel,
    expert_parallel,
    fully_shard,
    sequence_parallel,
    split_blocks,
    tensor_parallel,
)
from tests.distributed import run_ranks
from tests.parallel.counting import counting

VOCAB, D_MODEL, LAYERS, HEADS, ROWS, SEQ, MICRO, EXPERTS = 20, 16, 4, 4, 2, 8, 3, 8
X = 4 * ROWS * SEQ * D_MODEL
S = 2 * X  # keys and values, with as many heads as there are queries
HEADER = 8 * 128


def transformer(ffn=None) -> Transformer:
    block = BlockConfig(AttentionConfig(HEADS, HEADS, D_MODEL // HEADS), ffn or MLPConfig(32))
    model = Transformer(ModelConfig(VOCAB, D_MODEL, LAYERS, (block,), context_length=64))
    model.init_weights(seed=0)
    return model


def texts(rows, columns, seed=0):
    return torch.randint(VOCAB, (rows, columns), generator=torch.Generator().manual_seed(seed))


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def train(model, tokens, **options):
    loss_of(model(tokens[:, :-1], **options), tokens[:, 1:]).backward()


def data(rank, size):
    model = transformer()
    ddp = DDP(model, bucket_bytes=3000)
    with counting() as sent:
        train(model, texts(ROWS, SEQ + 1, rank))
        ddp.finish()
    return sent


def zero(rank, size, stage):
    model = transformer()
    zero = ZeRO(model, torch.optim.AdamW(model.parameters()), stage=stage, bucket_bytes=3000)
    with counting() as sent:
        train(model, texts(ROWS, SEQ + 1, rank))
        zero.finish()
        zero.step()
    return sent


def shard(rank, size):
    model = fully_shard(transformer())
    train(model, texts(ROWS, SEQ + 1, rank))
    with counting() as sent:
        train(model, texts(ROWS, SEQ + 1, rank))
    return sent


def cut(rank, size, apply):
    model = apply(transformer())
    with counting() as sent:
        train(model, texts(ROWS, SEQ + 1))
    return sent


def pipeline(rank, size):
    pipe = Pipeline(split_blocks(transformer(), size)[rank], "1f1b", MICRO)
    batches = [texts(ROWS, SEQ + 1, seed) for seed in range(MICRO)]
    with counting() as sent:
        pipe.step([b[:, :-1] for b in batches], lambda logits, i: loss_of(logits, batches[i][:, 1:]))
    return sent


def context(rank, size, method):
    model = context_parallel(transformer(), method=method)
    own = context_batch({"tokens": texts(ROWS, size * SEQ + 1)})
    with counting() as sent:
        train(model, own["tokens"], positions=own["positions"][:, :-1])
    return sent


def expert(rank, size):
    model = expert_parallel(transformer(MoEConfig(EXPERTS, 2, 8)))
    away = []

    def see(_, inputs):
        pairs = inputs[1].diff(prepend=inputs[1].new_zeros(1)).view(size, -1).sum(1)
        away.append(int(pairs.sum() - pairs[rank]))

    for module in model.modules():
        if hasattr(module, "expert_stacks"):
            module.register_forward_pre_hook(see)
    with counting() as sent:
        train(model, texts(ROWS, SEQ + 1, rank))
    return sent, sum(away)


def every_strategy(rank, size):
    return {
        "data": data(rank, size),
        "zero 1": zero(rank, size, 1),
        "zero 2": zero(rank, size, 2),
        "shard": shard(rank, size),
        "tensor": cut(rank, size, tensor_parallel),
        "sequence": cut(rank, size, sequence_parallel),
        "pipeline": pipeline(rank, size),
        "ring": context(rank, size, "ring"),
        "gather": context(rank, size, "gather"),
        "expert": expert(rank, size),
    }


def in_shards(model, size):
    """Bytes of one rank's shards: parameters begin at 64 bytes within a unit, and a unit is a multiple of the ranks."""
    units = [*model.blocks.children()]
    inner = {id(p) for unit in units for p in unit.parameters()}
    total = 0
    for params in [*(list(unit.parameters()) for unit in units), [p for p in model.parameters() if id(p) not in inner]]:
        *first, last = [p.numel() for p in params]
        total += 4 * -(-(sum(-(-n // 16) * 16 for n in first) + last) // size)
    return total


@pytest.mark.parametrize("size", [2, 4])
def test_volume_is_what_the_formulas_say(size):
    ranks = run_ranks(every_strategy, size, timeout=120)
    others, model = size - 1, transformer()
    count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))

    def of_all(name):
        return sum(rank[name].total() for rank in ranks)

    assert of_all("data") == 2 * others * 4 * (count + tensors)
    for stage in ("zero 1", "zero 2"):
        assert of_all(stage) == others * 4 * (count + tensors) + others * 4 * count
    share = others * in_shards(model, size)
    for rank in ranks:
        assert rank["shard"] == {"all_gather": 2 * share, "all_to_all_single": share}
        assert rank["tensor"] == {"all_reduce": 4 * LAYERS * 2 * others * X / size}
        assert rank["sequence"] == {
            "all_gather": (4 * LAYERS + 2) * others * X / size,
            "reduce_scatter": 4 * LAYERS * others * X / size,
            "all_reduce": 2 * LAYERS * 2 * others * 4 * D_MODEL / size,
        }
        positions = others * LAYERS * 8 * ROWS * SEQ
        assert rank["ring"] == {"isend": 3 * others * S * LAYERS, "all_gather": positions}
        assert rank["gather"] == {
            "all_gather": others * S * LAYERS + positions, "reduce_scatter": others * S * LAYERS,
        }  # fmt: skip
    assert of_all("pipeline") == 2 * others * X * MICRO + others * HEADER
    away = sum(rank["expert"][1] for rank in ranks)
    counts = LAYERS * others * 8 * EXPERTS
    assert sum(rank["expert"][0]["all_to_all_single"] for rank in ranks) == 4 * away * 4 * D_MODEL + counts
