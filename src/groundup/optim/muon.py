"""Muon: momentum whose update is orthogonalised, for matrices between hidden spaces."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.optim.adamw import AdamW
from groundup.optim.composite import Optimizers
from groundup.optim.groups import DECAYS, kind, split_for_muon
from groundup.optim.uncompiled import Uncompiled

# A quintic whose slope at 0 is 3.44, so that small singular values grow fast; five rounds bring all of
# [0.005, 1] into about [0.7, 1.2]. Being near 1 is enough: exact orthogonality brings nothing.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Float[Tensor, "*batch rows cols"], steps: int = 5, dtype: torch.dtype | None = torch.bfloat16
) -> Float[Tensor, "*batch rows cols"]:
    r"""The nearest (semi-)orthogonal matrix U V^T of each matrix U S V^T, approximately.

        X <- X / ||X||_F ;  repeat:  A = X X^T ;  X <- a X + (b A + c A^2) X

    The iteration acts on singular values only and never computes them. It runs on the wide orientation, so
    that A is the smaller Gram matrix, and in bfloat16 by default: its error is far below the iteration's own.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    x = matrices if dtype is None else matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    flat = x.reshape(-1, *x.shape[-2:])
    for _ in range(steps):
        flat = kernels.newton_schulz(flat, COEFFICIENTS)
    x = flat.reshape(x.shape)
    return (x.mT if tall else x).to(matrices.dtype)


Together = Callable[[list[Tensor], int, torch.dtype | None], list[Tensor]]
"""`orthogonalize` for several stacks of matrices at once: (stacks, steps, dtype) -> their updates."""


class Muon(Uncompiled):
    """Nesterov momentum, orthogonalised; each matrix moves by lr * sqrt(max(1, rows / cols)) * U V^T.

    The scale keeps the change of the output's RMS the same for every shape. Parameters have two or more
    axes (leading ones are a batch, as for experts). Matrices of one shape are stacked into one batched
    product. State per parameter: `momentum` (4 bytes per fp32 parameter).

    together: how the stacks of a step are orthogonalised when not each by itself, such as
    `parallel.orthogonalize_on_ranks`. The state is the same either way, so checkpoints are interchangeable.
    """

    supports_skip = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        steps: int = 5,
        dtype: torch.dtype | None = torch.bfloat16,
        together: Together | None = None,
    ):
        if not 0.0 <= momentum < 1.0 or lr < 0.0 or weight_decay < 0.0:
            raise ValueError(
                f"Muon lr={lr}, momentum={momentum}, weight_decay={weight_decay}: "
                "expected lr and decay at least 0 and momentum in [0, 1)"
            )
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps)
        super().__init__(params, defaults)
        self.dtype, self.together = dtype, together
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2:
                raise ValueError(f"Muon: a parameter of shape {tuple(p.shape)} is no matrix; give it to AdamW")

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        """The states of one parameter by name."""
        return {"momentum": p.shape}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, skip: Tensor | None = None) -> Any:
        """Update every matrix that has a gradient; where the scalar `skip` is 1 nothing changes."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            stacks = _by_shape(group["params"])
            if self.together is None:
                for params in stacks:
                    direction = self._directions(group, params, skip)
                    self._move(group, params, orthogonalize(direction, group["steps"], self.dtype), skip)
            elif stacks:
                directions = [self._directions(group, params, skip) for params in stacks]
                for params, update in zip(stacks, self.together(directions, group["steps"], self.dtype), strict=True):
                    self._move(group, params, update, skip)
        return result

    def _directions(self, group: dict[str, Any], params: list[Tensor], skip: Tensor | None) -> Tensor:
        """Nesterov's directions of matrices of one shape, as a stack; the momenta take the gradients in."""
        keep: Any = 1.0 if skip is None else 1.0 - skip
        directions = []
        for p in params:
            assert p.grad is not None
            # A bad gradient times zero is still NaN, so it is replaced where it must not count.
            grad = p.grad if skip is None else p.grad.masked_fill(skip > 0, 0.0)
            momentum = self._momentum(p).lerp_(grad, keep * (1.0 - group["momentum"]))
            directions.append(grad.lerp(momentum, group["momentum"]))
        return torch.stack(directions)

    def _move(self, group: dict[str, Any], params: list[Tensor], update: Tensor, skip: Tensor | None) -> None:
        keep: Any = 1.0 if skip is None else 1.0 - skip
        rows, cols = params[0].shape[-2:]
        rate = group["lr"] * max(1.0, rows / cols) ** 0.5
        for p, direction in zip(params, update.unbind(), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"] * keep)
            p.sub_(direction * (rate * keep))

    def _momentum(self, p: Tensor) -> Tensor:
        if not self.state[p]:
            self.state[p] = {"momentum": torch.zeros_like(p)}
        return self.state[p]["momentum"]


def muon_adamw(
    model: nn.Module,
    lr: float = 3e-3,
    muon_lr: float = 0.02,
    *,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    together: Together | None = None,
) -> Optimizers:
    """Muon on hidden matrices and AdamW on the rest, as one optimizer (the table is `groups.TO_MUON`).

    `together` as for `Muon`.
    """
    matrices, rest = split_for_muon(model)
    decayed = [p for name, p in rest if DECAYS[kind(name, p)]]
    plain = [p for name, p in rest if not DECAYS[kind(name, p)]]
    tables = [
        {"params": decayed, "weight_decay": weight_decay, "name": "decay"},
        {"params": plain, "weight_decay": 0.0, "name": "no_decay"},
    ]
    members: list[torch.optim.Optimizer] = []
    # Of a model that is frozen but for its adapters, either part can be empty.
    if matrices:
        members.append(Muon(matrices, muon_lr, momentum, weight_decay, together=together))
    if tables := [t for t in tables if t["params"]]:
        members.append(AdamW(tables, lr, betas, eps, weight_decay))
    return Optimizers(members)


def _by_shape(params: list[Tensor]) -> list[list[Tensor]]:
    table = defaultdict(list)
    for p in params:
        if p.grad is not None:
            table[p.shape, p.dtype, p.device].append(p)
    return list(table.values())
