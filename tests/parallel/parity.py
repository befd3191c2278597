"""What the ranks of `test_parity` run, and its oracle: tiny models, ragged batches, one training loop for all plans."""

import importlib
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, MoEConfig, Transformer
from groundup.model.balance import Balance
from groundup.optim import AdamW, clip_by_global_norm
from groundup.parallel.plan import ParallelPlan

ENGINES = {"groundup": "groundup.parallel.apply", "torch": "groundup.parallel.torch_engine"}
VOCAB, ROWS, SEQ, IGNORED = 31, 4, 16, 0
CLIP = 0.75
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, d_head=4, qk_norm=True)


LAYERS = {"dense": 2, "tied": 2, "experts": 2, "deep": 4}


def transformer(kind: str, dtype: torch.dtype) -> Transformer:
    """Of LAYERS. "tied" and "deep" have tied embeddings, "experts" a mixture of them with balancing losses."""
    ffn: Any = MLPConfig(24)
    if kind == "experts":
        ffn = MoEConfig(4, 2, 12, num_shared=1, balance=Balance(load=0.02, z=0.001))
    block = BlockConfig(ATTENTION, ffn)
    model = Transformer(ModelConfig(VOCAB, 16, LAYERS[kind], (block,), tie_embeddings=kind in ("tied", "deep")))
    model = model.to(dtype)
    model.compute_dtype = dtype
    return model


def rows_of(step: int) -> dict[str, Tensor]:
    """Counting sequences with other strides; each row has fewer tokens that count than the one before."""
    generator = torch.Generator().manual_seed(step)
    start, stride = torch.randint(1, VOCAB, (2, ROWS, 1), generator=generator)
    tokens = (start + stride % 4 * torch.arange(SEQ + 1)) % (VOCAB - 1) + 1
    lengths = torch.tensor([SEQ + 1, 12, 7, 2 + step % 3])[:, None]
    return {"tokens": torch.where(torch.arange(SEQ + 1) < lengths, tokens, IGNORED)}


def part_of(batch: dict[str, Tensor], part: int, parts: int) -> dict[str, Tensor]:
    return {name: tensor.chunk(parts)[part] for name, tensor in batch.items()}


def nats(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(the sum of the losses, the number of tokens that count)."""
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.sum(), (targets != IGNORED).sum()


def optimizer_over(params: Any) -> Any:
    return AdamW(params, lr=5e-4, eps=1e-3)


def accumulated(kind: str, parts: int, steps: int, dtype: torch.dtype) -> tuple[list[float], dict[str, Tensor]]:
    """(losses, weights) of one process that accumulates the parts of each batch; nothing of `parallel` is used."""
    model = transformer(kind, dtype)
    optimizer = optimizer_over(list(model.parameters()))
    losses = []
    for step in range(steps):
        totals = torch.zeros(2, dtype=torch.float64)
        for part in range(parts):
            tokens = part_of(rows_of(step), part, parts)["tokens"]
            auxiliary: list[Tensor] = []
            total, weight = nats(model.logits(model.hidden(tokens[:, :-1], auxiliary=auxiliary)), tokens[:, 1:])
            total = total + weight * sum(auxiliary, torch.zeros_like(total))
            total.backward()
            totals += torch.stack([total.detach().double(), weight.double()])
        losses.append(float(totals[0] / totals[1]))
        clip_by_global_norm(model.parameters(), CLIP, divisor=float(totals[1]))
        optimizer.step()
        optimizer.zero_grad()
    return losses, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trained(
    engine: str, plan: ParallelPlan, kind: str, steps: int, dtype: torch.dtype
) -> tuple[list[float], dict[str, Tensor]]:
    """The same under a plan."""
    room = importlib.import_module(ENGINES[engine])
    ranks = room.apply_plan(transformer(kind, dtype), plan)
    ranks.optimize(lambda named: optimizer_over([p for _, p in named]))
    losses = []
    for step in range(steps):
        batch = part_of(rows_of(step), ranks.mesh.rows, ranks.mesh.row_parts)
        total, weight = ranks.accumulate([batch], nats)
        ranks.step(divisor=weight, clip=CLIP)
        losses.append(total / weight)
    return losses, ranks.full_state_dict()


def train_all(rank: int, size: int, engine: str, cases: list[tuple[str, str]], steps: int, dtype: torch.dtype) -> Any:
    """[(losses, weights, seconds)] of each (plan, kind), one after the other, from rank 0."""
    results = []
    for text, kind in cases:
        begun = time.perf_counter()
        results.append((*trained(engine, ParallelPlan.parse(text), kind, steps, dtype), time.perf_counter() - begun))
    return results if rank == 0 else None
