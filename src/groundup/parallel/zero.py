"""ZeRO, stages 1 and 2: what only the update needs is kept once for all ranks together, not once on each.

    bytes per rank       parameters   gradients   AdamW's state     (fp32, P parameters on N ranks)
    data parallelism         4 P         4 P           8 P
    stage 1                  4 P         4 P           8 P / N
    stage 2                  4 P         4 P / N       8 P / N

Whole parameters are dealt out to the ranks. Each gradient is summed at its owner, who alone updates, and then sends
the parameter to all:

    rank 0   g1 g2 g3   ->   G1 .  .    update    w1' .   .     ->   w1' w2' w3'
    rank 1   g1 g2 g3   ->   .  G2 .   -------->  .   w2' .     ->   w1' w2' w3'
    rank 2   g1 g2 g3   ->   .  .  G3             .   .   w3'   ->   w1' w2' w3'

The first arrow sends (N - 1) / N of the gradients from a rank (on average: owners differ in size), the last as much of
the parameters: together no more than data parallelism. Stage 2 lets go of each gradient during the backward pass, as
soon as its bucket has been sent.

A whole parameter has one owner, so that optimizers which need whole matrices (Muon, SOAP, Adafactor) work as they are,
and an elementwise one gives the bits of a single process, since sums are in rank order (`rank_order.py`). The price is
balance: parameters are dealt by size, and no rank has more than 4/3 of the least that is possible, but one parameter
that is larger than the rest cannot be divided.

Rajbhandari et al. 2020 (arXiv:1910.02054).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.parallel.buckets import (
    BUCKET_BYTES,
    Overlap,
    Reduction,
    make_buckets,
    pack,
    packed_length,
    run,
    unpack,
)
from groundup.parallel.muon import deal
from groundup.parallel.rank_order import Exchange, start_gather
from groundup.parallel.replicate import replicate
from groundup.parallel.sharded_state import gather_state, load_groups, load_state, members, named_groups


class ZeRO:
    """An optimizer of a model that is the same on all ranks, with its state, and in stage 2 the gradients, divided.

        zero = ZeRO(model, torch.optim.AdamW(model.parameters()), stage=2)
        loss(model, batch).backward()
        zero.finish()                             # owned .grad: the sum over ranks; the others': None
        zero.clip(1.0, divisor=tokens)            # the norm is that of all ranks' gradients
        zero.step()                               # every rank has the new parameters
        zero.zero_grad()

    optimizer: any that keeps its state by parameter. Its groups are cut down to what this rank owns; they stay the same
    dicts, so a rate set there counts. Build it alike on all ranks.

    Every rank calls `finish` once after its last backward pass, also one that had no batch. Backward passes before it
    stand within `no_sync`, which adds up whole gradients on each rank; or each is followed by `finish`, which keeps
    them divided for as many times the messages, and adds to what the owner has.

    Gradients are summed; `clip` divides them (`clip(float("inf"), divisor=...)` does nothing else). Raises ValueError
    where models differ between ranks (`replicate`), for an optimizer that shares its work among ranks itself, or that
    has parameters which are not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        group: dist.ProcessGroup | None = None,
        *,
        stage: int = 2,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        if stage not in (1, 2):
            raise ValueError(f"ZeRO stage={stage}: expected 1 (optimizer state) or 2 (gradients too)")
        _check(model, optimizer)
        replicate(model, group)
        self.optimizer, self._group, self._rank = optimizer, group, dist.get_rank(group)
        self._size = dist.get_world_size(group)
        self._names = {p: name for name, p in model.named_parameters()}
        self._groups = named_groups(optimizer, self._names)
        self._owner = _owners(model, optimizer, self._size)
        _keep_own(optimizer, self._owner, self._rank)
        self._buckets = make_buckets(list(self._owner)[::-1], bucket_bytes)
        self._overlap = Overlap(self._buckets, self._reduce) if stage == 2 else None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def owners(self) -> dict[str, int]:
        """Which rank of the group updates each parameter, by name."""
        return {self._names[p]: rank for p, rank in self._owner.items()}

    def no_sync(self) -> AbstractContextManager[None]:
        """A context whose backward passes only add to this rank's gradients."""
        return nullcontext() if self._overlap is None else self._overlap.no_sync()

    def finish(self) -> None:
        """Leave the sum over ranks in `.grad` of each parameter that this rank owns, and None in the others'."""
        if self._overlap is None:
            run(self._reduce(bucket) for bucket in self._buckets)
        else:
            self._overlap.finish()

    @torch.no_grad()
    def clip(self, max_norm: float, eps: float = 1e-6, *, divisor: Tensor | float = 1.0) -> Tensor:
        """Scale all ranks' gradients by min(1, max_norm / (norm + eps)) / divisor; the norm, before, of the quotient.

        What `optim.clip_by_global_norm` does on one process, to the bit: each parameter's norm comes from its owner,
        and all ranks take the norm of these norms. One that is not finite scales by the divisor only.
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: expected a number above 0 (float('inf') does not clip)")
        norm = self._norm() / divisor
        factor = torch.where(norm.isfinite(), (max_norm / (norm + eps)).clamp(max=1.0), 1.0) / divisor
        if grads := [p.grad for p in self._owner if p.grad is not None]:
            torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def step(self, **options: Any) -> None:
        """Update what this rank owns, then give all ranks all parameters. `options` go to the optimizer's step.

        Raises RuntimeError for gradients that are not summed yet.
        """
        if any(p.grad is not None and owner != self._rank for p, owner in self._owner.items()):
            raise RuntimeError("ZeRO.step: gradients are not summed over ranks yet: call finish() before")
        self.optimizer.step(**options)
        run(self._share(bucket) for bucket in self._buckets)

    def zero_grad(self) -> None:
        for p in self._names:
            p.grad = None

    def full_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(name, states by key) of every parameter that has any, one after the other. Every rank has to run through."""
        return gather_state(self.optimizer, self._owner, self._names, self._group)

    def state_dict(self) -> dict[str, Any]:
        """{"state": {parameter name: {key: tensor on the CPU}}, "groups": [{"params": names, **options}]}.

        The same on every rank and for any number of ranks. A collective; `full_state` needs less memory.
        """
        state = {name: {key: t.cpu() for key, t in states.items()} for name, states in self.full_state()}
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {
            "state": state,
            "groups": [{**option, "params": names} for option, names in zip(options, self._groups, strict=True)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave on any number of ranks. Nothing changes where it raises.

        Raises ValueError for parameters or groups that are not this optimizer's, naming them, and for wrong shapes.
        """
        load_state(self.optimizer, state["state"], self._owner, self._names, self._rank, state["groups"], self._groups)
        load_groups(self.optimizer, state["groups"])

    def remove(self) -> None:
        """Take the hooks off the model."""
        if self._overlap is not None:
            self._overlap.remove()

    def _divided(self, bucket: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The bucket's parameters by owner."""
        return [[p for p in bucket if self._owner[p] == rank] for rank in range(self._size)]

    def _reduce(self, bucket: list[nn.Parameter]) -> Reduction:
        """Gradients to their owners, who add them; whoever does not own one lets go of it as soon as it is packed."""
        divided = self._divided(bucket)
        flat = torch.cat([part for params in divided for part in pack(params)])
        exchange = Exchange(flat, [packed_length(params) for params in divided], self._group)
        for p in bucket:
            if self._owner[p] != self._rank:
                p.grad = None
        yield
        unpack(exchange.add(), divided[self._rank])

    @torch.no_grad()
    def _share(self, bucket: list[nn.Parameter]) -> Reduction:
        """Parameters from their owners to all."""
        divided = self._divided(bucket)
        order = [p for params in divided for p in params]
        flat = torch.cat([p.reshape(-1) for p in order])
        gathering = start_gather(flat, [sum(p.numel() for p in params) for params in divided], self._group)
        yield
        gathering.wait()
        for p, values in zip(order, flat.split([p.numel() for p in order]), strict=True):
            if self._owner[p] != self._rank:
                p.copy_(values.view_as(p))

    def _norm(self) -> Tensor:
        """The norm of all ranks' gradients. Only an owner has a number other than 0 to add, so the sum is exact."""
        own = {i: p.grad for i, p in enumerate(self._owner) if p.grad is not None}
        device = next((p.device for p in self._owner), torch.device("cpu"))
        double = any(p.dtype == torch.float64 for p in self._owner)
        norms = torch.zeros(len(self._owner), dtype=torch.float64 if double else torch.float32, device=device)
        if own:
            found = torch._foreach_norm(list(own.values()))  # pyright: ignore[reportPrivateImportUsage]
            norms[list(own)] = torch.stack([norm.to(norms.dtype) for norm in found])
        dist.all_reduce(norms, group=self._group)
        return torch.linalg.vector_norm(norms)


def _check(model: nn.Module, optimizer: Any) -> None:
    ours = set(model.parameters())
    if any(p not in ours for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("ZeRO: the optimizer has a parameter that is not the model's")
    for member in members(optimizer):
        if getattr(member, "together", None) is not None:
            raise ValueError(
                f"ZeRO: {type(member).__name__} shares its work among ranks itself (together=...), for which each "
                "needs all gradients; build it without"
            )


def _owners(model: nn.Module, optimizer: Any, ranks: int) -> dict[nn.Parameter, int]:
    """A rank for each parameter that is trained, in the model's order; all ranks find the same."""
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    trained = [p for p in model.parameters() if p in stepped and p.requires_grad]
    owners = deal([(1, float(p.nbytes)) for p in trained], ranks)
    return {p: owner for p, (owner,) in zip(trained, owners, strict=True)}


def _keep_own(optimizer: Any, owner: dict[nn.Parameter, int], rank: int) -> None:
    for member in members(optimizer):
        for group in member.param_groups:
            group["params"] = [p for p in group["params"] if owner.get(p, rank) == rank]
        for p in [p for p in member.state if owner.get(p, rank) != rank]:
            del member.state[p]  # some make it when they are built
