"""Bytes of a training step: parameters, gradients, optimizer states, activations, and the logits in flight.

Activations are not estimated by formula: the model runs once on tensors without storage while autograd's
saved-tensor hooks add up what the backward pass would keep. So a new layer is counted right from its first day.
These tensors say that they are on the real device, because kernels choose their path by it: the fused attention
keeps no scores.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from groundup.accounting.optimizers import OptimizerName, state_bytes
from groundup.accounting.params import check_one_stack, meta_model
from groundup.kernels.quantized_linear import Products
from groundup.model import CountingCache, ModelConfig, ReinforceRouter, Transformer
from groundup.model.balance import routers
from groundup.model.hard_choice import Choice
from groundup.model.products import set_products

FP32_BYTES = 4
# fp32 logits, their gradient and the softmax of one chunk live at the same time.
LOGIT_COPIES = 3


@dataclass(frozen=True)
class MemoryLedger:
    """Bytes by purpose.

    `cast_weights` are the copies in the compute type, or in float8, that the backward pass reads: of the head, and of
    blocks that are not recomputed. `peak` is the sum, an upper bound: with several micro-batches everything is alive at
    the end of a forward pass; with one, gradients come to life while activations are freed.
    """

    parameters: int
    gradients: int
    optimizer: int
    cast_weights: int
    activations: int
    logits: int

    @property
    def peak(self) -> int:
        """All bytes at once."""
        return sum(asdict(self).values())


def training_memory(
    config: ModelConfig,
    batch: int,
    seq: int,
    dtype: torch.dtype = torch.float32,
    *,
    optimizer_states: float | OptimizerName = 2.0,
    logit_rows: int = 512,
    recompute: bool | int = False,
    device: torch.device | str = "cpu",
    products: Products | None = None,
) -> MemoryLedger:
    """The ledger of one step with fp32 master weights and compute in `dtype`.

    What a `ReinforceRouter` keeps of its choices is in the activations; the greedy pass of its baseline keeps nothing,
    and its rows of logits are no more than those of the head.

    Its peak is a bound, found in a part of a second for any depth; `train.rehearse_config` is the prediction, which
    takes a step of every layer and knows in which order things come and go.

    `optimizer_states` is the number of fp32 values that the optimizer keeps per parameter: 2 for AdamW,
    1 for momentum and Muon; or an optimizer's name, for what it keeps of this very model. `logit_rows` is the chunk
    of the fused head and loss. `recompute` is the number of blocks (True: all) under activation checkpointing,
    `device` and `products` as for `activation_bytes`.
    """
    model = meta_model(config)
    set_products(model, products)
    count = sum(p.numel() for p in model.parameters())
    first_kept = config.num_layers if recompute is True else int(recompute)
    copies = 0 if dtype == torch.float32 else dtype.itemsize
    kept = [*model.blocks[first_kept:], *([] if model.multi_token is None else [model.multi_token])]
    blocks = sum(_copied_bytes(module, copies) for part in kept for module in part.modules())
    return MemoryLedger(
        parameters=FP32_BYTES * count,
        gradients=FP32_BYTES * count,
        optimizer=_state_bytes(model, optimizer_states),
        cast_weights=blocks + copies * model.head_weight.numel(),
        activations=activation_bytes(config, batch, seq, dtype, recompute, device, products) - blocks,
        logits=LOGIT_COPIES * FP32_BYTES * min(logit_rows, batch * seq) * config.vocab_size,
    )


def _state_bytes(model: nn.Module, states: float | OptimizerName) -> int:
    if isinstance(states, str):
        return state_bytes(model, states)
    return int(FP32_BYTES * states * sum(p.numel() for p in model.parameters()))


def _copied_bytes(module: nn.Module, copies: int) -> int:
    """Of a module's own matrices: a byte a number in fp8; none in mxfp8 and int8, which read the master again."""
    each = {"fp8": 1, "mxfp8": 0, "int8": 0}.get(getattr(module, "products", None) or "", copies)
    return each * sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1)


def activation_bytes(
    config: ModelConfig,
    batch: int,
    seq: int,
    dtype: torch.dtype,
    recompute: bool | int = False,
    device: torch.device | str = "cpu",
    products: Products | None = None,
) -> int:
    """Bytes that autograd keeps between forward and backward, cast weights included, parameters not.

    `device` is where the model would train; nothing is allocated there, but this torch must support it. `products` is
    what the linear layers of blocks multiply, if not `dtype`: "fp8" keeps their inputs and weights in one byte for each
    number, once for each layer that reads them; "mxfp8" and "int8" keep the inputs in `dtype` and no copy of
    the weights.
    """
    check_one_stack(config)
    period = len(config.blocks)
    first = config.num_layers if recompute is True else int(recompute)

    def kept(again: int, plain: int) -> int:
        """Of a model with so many whole rounds of its blocks recomputed, and not."""
        blocks = again * period + first % period
        layers = blocks + plain * period + (config.num_layers - first) % period
        return _kept_bytes(replace(config, num_layers=layers), batch, seq, dtype, blocks, device, products)

    # One more round of the same blocks keeps as much again, and a deep model takes a second to run.
    again, plain = first // period, (config.num_layers - first) // period
    one_again, one_plain = min(again, 1), min(plain, 1)
    total = kept(one_again, one_plain)
    if again > 1:
        total += (again - 1) * (kept(2, one_plain) - kept(1, one_plain))
    if plain > 1:
        total += (plain - 1) * (kept(one_again, 2) - kept(one_again, 1))
    return total


def _kept_bytes(
    config: ModelConfig,
    batch: int,
    seq: int,
    dtype: torch.dtype,
    recompute: int,
    device: torch.device | str,
    products: Products | None,
) -> int:
    model = meta_model(config)
    set_products(model, products)
    model.compute_dtype, model.recompute = dtype, recompute
    kept: dict[int, int] = {}
    alive: list[Any] = []
    choices: list[Choice] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # or the allocator could give its address to another storage
        return tensor

    with FakeTensorMode():
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device)))
            for name, b in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(b.shape, dtype=b.dtype, device=device))
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        with saved_tensors_hooks(pack, lambda t: t):
            tokens = torch.zeros(batch, seq, dtype=torch.long, device=device)
            hidden = model.hidden(tokens, **_for_choices(model, alive, choices))
            if model.multi_token is not None:
                further = model.multi_token(model, hidden, tokens[:, 1:])
                alive.extend(further)  # each is read by the head
            # What came of a choice multiplies its log p, in the objective: one number a token, for all layers alike.
            costs = {choice.config: torch.zeros_like(choice.log_probs) for choice in choices}
            alive.extend((costs[choice.config] * choice.log_probs).sum() for choice in choices)
    return sum(kept.values())


def _for_choices(model: Transformer, alive: list[Any], choices: list[Choice]) -> dict[str, Any]:
    """What a forward pass is asked for where routers learn by REINFORCE: entropies and choices, which then stay."""
    sampled = any(isinstance(router.config, ReinforceRouter) for router in routers(model).values())
    return {"auxiliary": alive, "choices": choices} if sampled else {}


def least_recompute(
    config: ModelConfig,
    batch: int,
    seq: int,
    memory_bytes: int,
    dtype: torch.dtype = torch.float32,
    *,
    optimizer_states: float | OptimizerName = 2.0,
    logit_rows: int = 512,
    device: torch.device | str = "cpu",
) -> int | None:
    """The fewest blocks to recompute so that a step's peak stays within `memory_bytes`; None when no number does.

    Every recomputed block costs its forward pass once more, so no more than necessary should be.
    """
    check_one_stack(config)
    low, high = 0, config.num_layers
    while low <= high:
        blocks = (low + high) // 2
        needed = training_memory(
            config, batch, seq, dtype,
            optimizer_states=optimizer_states, logit_rows=logit_rows, recompute=blocks, device=device,
        ).peak  # fmt: skip
        low, high = (low, blocks - 1) if needed <= memory_bytes else (blocks + 1, high)
    return low if low <= config.num_layers else None


class CacheBytes(NamedTuple):
    """What inference remembers: bytes for each token of a sequence, and bytes of a sequence whatever its length."""

    per_token: int
    fixed: int


def cache_bytes(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> CacheBytes:
    """Counted by running the model on the meta device with a cache that only counts.

    Attention remembers 2 L n_kv d_head numbers of `dtype` per token (the last ones alone, where it has a window),
    latent attention L (kv_rank + d_rope); recurrences have states, in float32 where they are sums.
    """
    model = meta_model(config)
    model.compute_dtype = dtype
    caches = [CountingCache() for _ in model.blocks]
    model.hidden(torch.zeros(1, 1, dtype=torch.long, device="meta"), caches=caches)
    return CacheBytes(sum(cache.bytes_per_token for cache in caches), sum(cache.fixed_bytes for cache in caches))


def kv_cache_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """What one more token of context costs in inference."""
    return cache_bytes(config, dtype).per_token
