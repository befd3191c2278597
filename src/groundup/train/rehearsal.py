"""A training step before it is run: the real code, on tensors without storage, for the bytes that it would hold."""

import copy
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from groundup.accounting.params import meta_model
from groundup.accounting.simulate import (
    BACKWARD,
    BATCH,
    FORWARD,
    GRADIENTS,
    OPTIMIZER,
    PARAMETERS,
    UPDATE,
    LiveBytes,
    Simulation,
)
from groundup.data.batch import Batch
from groundup.kernels.quantized_linear import Products
from groundup.model import ModelConfig
from groundup.model.balance import update_biases
from groundup.model.products import set_products
from groundup.optim import make_optimizer
from groundup.train.feed import split
from groundup.train.objectives import Loss, pretraining
from groundup.train.step import Objective, compute_gradients


def rehearse(
    model: nn.Module,
    objective: Objective,
    optimizer: Any,
    batches: Batch | list[Batch],
    *,
    micro_batches: int = 1,
    clip: float | None = 1.0,
    device: torch.device | str | None = None,
) -> Simulation:
    """The bytes of a training step: forward, backward, clipping and update, as `train` would run them.

    Nothing is computed, and neither model, optimizer nor batch is touched; a model on the meta device will do. The
    optimizer's states count as there before the step, as from the second step on. `device` is where it would run
    (default: where the model is). A compiled model is taken as one that is not, and holds less. Scratch of libraries is
    left out: with `device.use_onednn_fp32`, oneDNN takes up to 0.7 MB per thread from torch's allocator.

    batches: of one update, as `train` takes them from its source, each cut into `micro_batches`
    """
    groups = [batches] if isinstance(batches, dict) else batches
    live = LiveBytes(_vocab_size(model))
    with FakeTensorMode():
        stand_ins = _StandIns(device)
        twin, its_optimizer = stand_ins.model(model), stand_ins.optimizer(optimizer)
        own = [{name: stand_ins.tensor(tensor) for name, tensor in batch.items()} for batch in groups]
        _give_states(twin, its_optimizer)
        live.adopt([*twin.parameters(), *twin.buffers()], PARAMETERS)
        live.adopt(states(its_optimizer), OPTIMIZER)
        live.adopt((tensor for batch in own for tensor in batch.values()), BATCH)
        with live:
            _step(live, twin, objective, its_optimizer, own, micro_batches, math.inf if clip is None else clip)
    return live.result()


def _step(
    live: LiveBytes,
    model: nn.Module,
    objective: Objective,
    optimizer: Any,
    group: list[Batch],
    micro_batches: int,
    clip: float,
) -> None:
    """As in `loop`: launch and settle."""

    def forward(model: nn.Module, batch: Batch) -> Loss:
        live.phase = FORWARD
        try:
            return objective(model, batch)
        finally:
            live.phase = BACKWARD

    micro = [part for batch in group for part in split(batch, micro_batches)]
    compute_gradients(model, forward, _different(micro), clip)
    live.adopt((p.grad for p in model.parameters() if p.grad is not None), GRADIENTS)
    live.phase = UPDATE
    optimizer.step()
    update_biases(model)
    optimizer.zero_grad(set_to_none=True)


def _different(micro: list[Batch]) -> list[Batch]:
    """The first two of each shape: before the first there are no gradients, and the others are as the second."""
    seen: Counter[tuple[Any, ...]] = Counter()
    kept = []
    for batch in micro:
        shapes = tuple((name, tensor.shape) for name, tensor in batch.items())
        seen[shapes] += 1
        if seen[shapes] <= 2:
            kept.append(batch)
    return kept


class _StandIns:
    """Copies of objects whose tensors have no storage. `copied` is deepcopy's memory of who stands in for whom."""

    def __init__(self, device: torch.device | str | None) -> None:
        self.device = device
        self.copied: dict[int, Any] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        device = tensor.device if self.device is None else self.device
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    def model(self, model: nn.Module) -> Any:
        for p in model.parameters():
            self.copied[id(p)] = nn.Parameter(self.tensor(p), p.requires_grad)
        for buffer in model.buffers():
            self.copied[id(buffer)] = self.tensor(buffer)
        twin = copy.deepcopy(model, self.copied).train()
        if hasattr(twin, "compiled"):
            twin.compiled = False  # type: ignore[assignment]
        return twin

    def optimizer(self, optimizer: Any) -> Any:
        """After the model. Optimizers pickle less than they have, so their attributes are copied one by one."""
        if hasattr(optimizer, "optimizers"):
            twin = copy.copy(optimizer)
            twin.optimizers = [self.optimizer(member) for member in optimizer.optimizers]
            return twin
        for state in states(optimizer):
            self.copied[id(state)] = self.tensor(state)
        twin = object.__new__(type(optimizer))
        vars(twin).update(copy.deepcopy(vars(optimizer), self.copied))
        return twin


def _give_states(model: nn.Module, optimizer: Any) -> None:
    """What the optimizer keeps from its first step on."""
    for p in model.parameters():
        p.grad = torch.empty_like(p) if p.requires_grad else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def states(optimizer: Any) -> Iterator[Tensor]:
    """Every tensor that an optimizer, or one made of several, keeps from step to step."""
    for member in getattr(optimizer, "optimizers", [optimizer]):
        for state in member.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _vocab_size(model: nn.Module) -> int | None:
    head = getattr(model, "head_weight", None)
    return None if head is None else head.shape[0]


def rehearse_config(
    config: ModelConfig,
    batch: int,
    seq: int,
    dtype: torch.dtype = torch.float32,
    *,
    optimizer: str = "adamw",
    micro_batches: int = 1,
    recompute: bool | int = False,
    device: torch.device | str = "cpu",
    products: Products | None = None,
) -> Simulation:
    """`rehearse` of a model that does not exist yet, on `batch` rows of `seq` tokens; any size takes little memory.

    optimizer: a name of `optim.OPTIMIZERS`, such as "adamw" or "muon_adamw"
    products: what the linear layers of blocks multiply, if not `dtype`
    """
    model = meta_model(config)
    model.compute_dtype, model.recompute = dtype, recompute
    set_products(model, products)
    tokens = torch.empty(batch, seq + 1, dtype=torch.long, device="meta")
    made = make_optimizer(optimizer, model, lr=1e-3)
    return rehearse(model, pretraining(model), made, {"tokens": tokens}, micro_batches=micro_batches, device=device)
