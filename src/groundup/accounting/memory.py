"""Bytes of a training step: parameters, gradients, optimizer states, activations, and the logits in flight.

Activations are not estimated by formula: the model runs once on the meta device while autograd's
saved-tensor hooks add up what the backward pass would keep. So a new layer is counted right from its first day.
"""

from dataclasses import asdict, dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from groundup.accounting.params import meta_model
from groundup.model import CountingCache, ModelConfig

FP32_BYTES = 4
# fp32 logits, their gradient and the softmax of one chunk live at the same time.
LOGIT_COPIES = 3


@dataclass(frozen=True)
class MemoryLedger:
    """Bytes by purpose. `peak` is their sum: at the end of the forward pass all of them are alive."""

    parameters: int
    gradients: int
    optimizer: int
    cast_weights: int
    activations: int
    logits: int

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())


def training_memory(
    config: ModelConfig,
    batch: int,
    seq: int,
    dtype: torch.dtype = torch.float32,
    *,
    optimizer_states: float = 2.0,
    logit_rows: int = 512,
    recompute: bool | int = False,
) -> MemoryLedger:
    """The ledger of one step with fp32 master weights and compute in `dtype`.

    `optimizer_states` is the number of fp32 values that the optimizer keeps per parameter: 2 for AdamW,
    1 for momentum and Muon. `logit_rows` is the chunk of the fused head and loss.
    """
    model = meta_model(config)
    count = sum(p.numel() for p in model.parameters())
    cast = 0 if dtype == torch.float32 else sum(p.numel() for p in model.parameters() if p.ndim > 1)
    return MemoryLedger(
        parameters=FP32_BYTES * count,
        gradients=FP32_BYTES * count,
        optimizer=int(FP32_BYTES * optimizer_states * count),
        cast_weights=dtype.itemsize * cast,
        activations=activation_bytes(config, batch, seq, dtype, recompute) - dtype.itemsize * cast,
        logits=LOGIT_COPIES * FP32_BYTES * min(logit_rows, batch * seq) * config.vocab_size,
    )


def activation_bytes(
    config: ModelConfig, batch: int, seq: int, dtype: torch.dtype, recompute: bool | int = False
) -> int:
    """Bytes that autograd keeps between forward and backward, cast weights included, parameters not."""
    model = meta_model(config)
    model.compute_dtype = dtype
    model.recompute = recompute
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # or the allocator could give its address to another storage
        return tensor

    tokens = torch.zeros(batch, seq, dtype=torch.long, device="meta")
    with saved_tensors_hooks(pack, lambda t: t):
        model.hidden(tokens)
    return sum(kept.values())


def kv_cache_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """What one more token of context costs in inference, over all layers: 2 L n_kv d_head bytes for attention.

    Counted by running the model on the meta device with a cache that only counts.
    """
    model = meta_model(config)
    model.compute_dtype = dtype
    caches = [CountingCache() for _ in model.blocks]
    model.hidden(torch.zeros(1, 1, dtype=torch.long, device="meta"), caches=caches)
    return sum(cache.bytes_per_token for cache in caches)
