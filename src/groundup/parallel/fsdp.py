"""Fully sharded data parallelism: every rank keeps 1/N of each parameter, gradient and optimizer state.

A model is cut into units (its blocks, and the rest). A unit's parameters are whole only while it computes:

    forward    gather 0 | run 0 | free 0
                          gather 1 | run 1 | free 1                    gathered one unit ahead of its use
                                     gather 2 | run 2 | free 2
    backward   gather 2 | back 2 | free 2, sum gradients of 2
                          gather 1 | back 1 | free 1, sum gradients of 1
                                     ...

Each rank sees its own batch, so this is data parallelism: the sum of gradients over ranks is a reduce-scatter, after
which a rank has the gradient of its own part, and an elementwise optimizer updates just that. Per step a rank sends
(N - 1) / N of the parameters three times, where plain data parallelism does twice, and holds 1 / N of everything.

ZeRO stage 3 (Rajbhandari et al. 2019, arXiv:1910.02054); FSDP (Zhao et al. 2023, arXiv:2304.11277).
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from groundup.parallel.agreement import check_alike
from groundup.parallel.flat import Entry, FlatShard, Meter, Wire
from groundup.parallel.units import Units, assign_parameters, choose_units


def fully_shard(
    model: nn.Module,
    units: Units | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    compute_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
    average: bool = False,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Cut `model` in place, over the ranks of the group, and return it. Every rank must hold the same weights.

        model = fully_shard(model)
        optimizer = AdamW(model.parameters())       # after: the parameters are new objects, a piece each
        loss(model(tokens)).backward()              # .grad: this rank's part of the sum over ranks
        optimizer.step()

    Parameters keep their names, number of axes and gradient hooks, but are whole only inside of a unit's `forward`, and
    of the `gathered` context for those of no unit. Optimizers have to be elementwise. Choose what is frozen before.

    units: modules that gather together, or a predicate of (name, module). By default each child of a ModuleList or
    ModuleDict. What is in none of them, or tied between two, belongs to the model itself and is gathered throughout its
    forward. A unit that is called twice in one graph sends its gradients twice.
    compute_dtype: gathered in this type (weights on each rank keep theirs); the activations' type is up to the model.
    reduce_dtype: gradients are sent in this type (None: the parameters'), and added up in that of the parameters.
    average: gradients are divided by the number of ranks. Otherwise they are sums, in the order of ranks, so that N
    ranks equal N accumulated batches to the bit.
    device: where the shards go; needed for a model on the meta device, whose shards are zero until `load_full`.

    Raises ValueError when ranks hold different models, naming the rank and the parameter, when a model is cut twice,
    and when a unit is no part of it.
    """
    if hasattr(model, "_sharding"):
        raise ValueError("fully_shard: this model is cut already")
    if device is None and any(p.is_meta for p in model.parameters()):
        raise ValueError("fully_shard: parameters are on the meta device; say where the shards go with device=...")
    check_alike(model, group, values=True)
    wire = Wire(group, compute_dtype, reduce_dtype, average, None if device is None else torch.device(device))
    model._sharding = _Sharding(model, choose_units(model, units), wire)  # type: ignore[assignment]
    return model


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it the parameters that are in no unit are whole, for code that uses a model otherwise than by calling it:

        with gathered(model):
            loss = linear_cross_entropy(model.hidden(tokens), model.head_weight, targets)
            loss.backward()

    With the backward pass inside they are gathered once, instead of twice. Without one they stay whole until they are
    needed next, since it may come later.
    """
    state = sharding(model)
    with state.root.whole():
        before = state.backwards
        yield
        state.root.stays = torch.is_grad_enabled() and state.backwards == before


def sharding(model: nn.Module) -> "_Sharding":
    """How `fully_shard` cut this model: its units, its flat shards, and a meter of bytes sent and held."""
    found = getattr(model, "_sharding", None)
    if not isinstance(found, _Sharding):
        raise ValueError("this model was not cut by fully_shard")
    return found


class _Sharding:
    """The units of a model in the order in which they run, which is found out in the first forward pass."""

    def __init__(self, model: nn.Module, modules: list[nn.Module], wire: Wire) -> None:
        self.wire, self.meter = wire, Meter()
        self.trace: list[_Unit] = []
        self.after: dict[_Unit, _Unit] = {}
        self.before: dict[_Unit, _Unit] = {}
        self.finishing, self.backwards = False, 0
        groups = assign_parameters(model, modules)
        self.units = [_Unit(self, entries) for entries in groups]
        self.root = self.units[0]
        self.flats = [flat for unit in self.units for flat in unit.flats]
        for module, unit in zip([model, *modules], self.units, strict=True):
            _wrap(module, unit)

    def learn_order(self) -> None:
        order = list(dict.fromkeys(self.trace))
        self.after = dict(pairwise(order))
        self.before = {b: a for a, b in self.after.items()}
        self.trace = []

    def finish_later(self) -> None:
        """Have `finish` called when the backward pass that is going on has ended."""
        if not self.finishing:
            self.finishing = True
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)  # type: ignore[attr-defined]

    def finish(self) -> None:
        self.finishing = False
        self.backwards += 1
        for unit in self.units:
            unit.backwards = 0
            for flat in unit.flats:
                flat.settle()
            unit.release()


class _Unit:
    """Parameters that are gathered, freed and reduced together: whole while somebody is inside, or going back.

    `stays`: a backward pass may begin without notice, so they are whole until the next forward pass.
    """

    def __init__(self, sharding: _Sharding, entries: list[Entry]) -> None:
        self.sharding = sharding
        kinds: dict[tuple[torch.dtype, bool], list[Entry]] = {}
        for entry in entries:
            kinds.setdefault((entry.whole.dtype, entry.whole.requires_grad), []).append(entry)
        self.flats = [FlatShard(alike, sharding.wire, sharding.meter) for alike in kinds.values()]
        self.trained = [flat for flat in self.flats if flat.trained]
        self.inside = self.backwards = 0
        self.stays = False
        self.show(lambda flat: flat.pieces)

    def show(self, tensors: Callable[[FlatShard], Iterable[Tensor]]) -> None:
        """Put these in the parameters' places."""
        for flat in self.flats:
            for slot, tensor in zip(flat.slots, tensors(flat), strict=True):
                tensor._is_param = True  # type: ignore[attr-defined]  # for those who ask isinstance(_, nn.Parameter)
                for module, name in slot.owners:
                    module._parameters[name] = tensor  # type: ignore[assignment]
                    if isinstance(module, nn.RNNBase):  # it reads its weights from a list of its own
                        module._flat_weights = [getattr(module, each) for each in module._flat_weights_names]

    @contextmanager
    def whole(self) -> Iterator[None]:
        if not self.inside:
            self._enter()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._leave()

    def _enter(self) -> None:
        sharding, going_back = self.sharding, _going_back()
        if sharding.finishing and not going_back:  # the last backward pass failed halfway
            sharding.finish()
        if self.stays and not going_back:  # an optimizer may have stepped since
            self.stays = False
            self.release()
        for flat in self.flats:
            flat.gather()
        self.show(self._wholes().__getitem__)
        if self is sharding.root:
            sharding.trace = []
        elif not going_back and sharding.root.inside:
            sharding.trace.append(self)
            self._launch(sharding.after.get(self))

    def _wholes(self) -> dict[FlatShard, list[Tensor]]:
        wholes = {flat: flat.wholes() for flat in self.flats if not flat.trained}
        if self.trained:
            pieces = [piece for flat in self.trained for piece in flat.pieces]
            trained = iter(_Wholes.apply(self, *pieces))  # type: ignore[arg-type]
            wholes |= {flat: [_hooked(slot.hooks, next(trained)) for slot in flat.slots] for flat in self.trained}
        return wholes

    def _leave(self) -> None:
        self.show(lambda flat: flat.pieces)
        self.release()
        if self is self.sharding.root and not _going_back():
            self.sharding.learn_order()
            for unit in self.sharding.units:  # one that was launched, and then not called
                unit.release()

    def _launch(self, unit: "_Unit | None") -> None:
        for flat in unit.flats if unit is not None else ():
            flat.launch()

    def release(self) -> None:
        if not self.inside and not self.backwards and not self.stays:
            for flat in self.flats:
                flat.free()

    def watch(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Go back when the first gradient of an output comes. What is trained says itself when it is through."""
        if not torch.is_grad_enabled():
            return
        if outputs:
            register_multi_grad_hook(outputs, self._go_back, mode="any")
        elif self.trained or inputs or self is self.sharding.root:  # they are in something that cannot be looked into
            self.stays = True
        if inputs and not self.trained:
            register_multi_grad_hook(inputs, lambda _: self.gone_back(()), mode="all")

    def _go_back(self, _: Tensor) -> None:
        self.sharding.finish_later()
        self.backwards += 1
        for flat in self.flats:
            flat.gather()
        later = self.sharding.after.get(self)
        if later is None or not later.backwards:  # else three would be whole
            self._launch(self.sharding.before.get(self))

    def gone_back(self, gradients: tuple[Tensor | None, ...]) -> None:
        self.sharding.finish_later()
        for flat in self.sharding.flats:  # one unit's gradients are on their way at a time
            flat.settle()
        start = 0
        for flat in self.trained:
            flat.reduce(gradients[start : start + len(flat.slots)])
            start += len(flat.slots)
        self.backwards = max(0, self.backwards - 1)
        self.release()
        earlier = self.sharding.before.get(self)
        if earlier is not None and earlier.backwards:  # it has begun already, as happens where this one is frozen
            self._launch(self.sharding.before.get(earlier))


def _hooked(hooks: Iterable[Callable[[Tensor], Tensor | None]], whole: Tensor) -> Tensor:
    for hook in hooks if whole.requires_grad else ():
        whole.register_hook(hook)
    return whole


class _Wholes(torch.autograd.Function):
    """Pieces in, whole parameters out. Its node is the unit's oldest, so that its backward comes when all else is done.

    The pieces' gradients are on their way when that returns, and are set when they have arrived.
    """

    @staticmethod
    def forward(ctx: Any, unit: _Unit, *pieces: Tensor) -> tuple[Tensor, ...]:
        ctx.unit, ctx.count = unit, len(pieces)
        ctx.set_materialize_grads(False)
        return tuple(whole for flat in unit.trained for whole in flat.wholes())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.unit.gone_back(gradients)
        return (None,) * (ctx.count + 1)


def _going_back() -> bool:
    """Whether a backward pass is going on: activations may be recomputed in it."""
    return torch._C._current_graph_task_id() != -1  # type: ignore[attr-defined]


def _wrap(module: nn.Module, unit: _Unit) -> None:
    compiled = module._compiled_call_impl  # what a call runs where the module was compiled
    inner = module.forward if compiled is None else compiled

    @functools.wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        before = list(_tensors((args, kwargs)))
        known = {id(t) for t in before}
        with unit.whole():
            results = inner(*args, **kwargs)
            # A module may also hand out tensors by what it was given: a list to which it adds its auxiliary loss.
            made = [t for t in _tensors((results, args, kwargs)) if id(t) not in known]
            unit.watch([t for t in before if t.requires_grad and not t.is_leaf], [t for t in made if t.requires_grad])
        return results

    setattr(module, "forward" if compiled is None else "_compiled_call_impl", forward)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those inside of tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])
