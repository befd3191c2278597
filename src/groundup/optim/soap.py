"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

# pyright: reportPrivateImportUsage=false
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from groundup.optim.stepping import Stepping, check_options

State = dict[str, Tensor]


def soap_(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    state: State,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    shampoo_beta: float,
    eps: float,
    weight_decay: float,
) -> None:
    r"""One update of one tensor, in place; `step` is t, counted from 1. `renew_bases` follows every so many steps.

        M <- M + (1 - b1)(G - M)
        G' = Ql^T G Qr        M' = Ql^T M Qr        V <- b2 V + (1 - b2) G'^2
        theta <- theta (1 - lr * decay) - lr / (1 - b1^t) * Ql [M' / (sqrt(V / (1 - b2^t)) + eps)] Qr^T
        L <- L + (1 - b)(G G^T - L)          R <- R + (1 - b)(G^T G - R)

    Ql and Qr are the eigenvectors of L and R; where both are the identity, this is Adam. V lives in the rotated space,
    and is what goes on adapting between two renewals; M stays in the plain one, so it survives them.

    Vyas et al. 2024, algorithm 3 (arXiv:2409.11321).
    """
    mean, variance = state["exp_avg"], state["exp_avg_sq"]
    param.mul_(1 - lr * weight_decay)
    mean.lerp_(grad, 1 - betas[0])
    rotated = rotate(grad, state)
    variance.mul_(betas[1]).addcmul_(rotated, rotated, value=1 - betas[1])
    denominator = (variance.sqrt() / (1 - betas[1] ** step) ** 0.5).add_(eps)
    direction = rotate_back(rotate(mean, state) / denominator, state)
    param.add_(direction, alpha=-(lr / (1 - betas[0] ** step)))
    gather(grad, state, 1 - shampoo_beta)


def rotate(x: Tensor, state: State) -> Tensor:
    """Ql^T x Qr; a side without a basis stays as it is."""
    x = state["basis_left"].mT @ x if "basis_left" in state else x
    return x @ state["basis_right"] if "basis_right" in state else x


def rotate_back(x: Tensor, state: State) -> Tensor:
    """Ql x Qr^T, which undoes `rotate`."""
    x = state["basis_left"] @ x if "basis_left" in state else x
    return x @ state["basis_right"].mT if "basis_right" in state else x


def gather(grad: Tensor, state: State, weight: float) -> None:
    """Move L and R towards this gradient's outer products."""
    if "left" in state:
        state["left"].lerp_(grad @ grad.mT, weight)
    if "right" in state:
        state["right"].lerp_(grad.mT @ grad, weight)


def renew_bases(state: State, grad: Tensor, *, first: bool, beta2: float) -> None:
    """Turn the bases towards the eigenvectors of L and R, which have moved on.

    A renewal is one power iteration, made orthogonal: Q <- QR(L Q) (the paper's algorithm 4). It keeps the order of the
    columns, so V stays with its directions. The first is a whole eigendecomposition, largest value first, as power
    iteration wants it; V then holds one gradient of another basis, and is made again in this one.
    """
    for side in ("left", "right"):
        if side not in state:
            continue
        exact = torch.promote_types(state[side].dtype, torch.float32)  # no decomposition has 16 bits
        moments, basis = state[side].to(exact), state[f"basis_{side}"].to(exact)
        vectors = torch.linalg.eigh(moments)[1].flip(-1) if first else torch.linalg.qr(moments @ basis)[0]
        state[f"basis_{side}"].copy_(vectors)
    if first:
        state["exp_avg_sq"].copy_(rotate(grad, state).square() * (1 - beta2))


class SOAP(Stepping):
    """SOAP over a model, parameters, or parameter groups.

    State: `exp_avg`, `exp_avg_sq` and `step` as AdamW; for each side of a matrix that is at most `max_side` long also
    its moments (`left`, `right`) and basis, two squares each: for a square matrix six numbers per parameter in all.
    Vectors, and matrices with both sides longer, are Adam's. Leading axes are a batch of matrices.

    frequency: steps between two renewals of the bases, the costly part. The first comes after step 1, which is
    Adam's; the authors' code takes no step there, as a gradient in its own basis says nothing about the others.
    foreach: elementwise work on many tensors at once; `False` runs the reference. Equal to rounding.

    A renewal reads the step count and `skip`, so it waits for the device: once every `frequency` steps, and no other
    step.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        frequency: int = 10,
        max_side: int = 10_000,
        foreach: bool = True,
    ):
        first, second = betas
        check_options(
            "SOAP",
            at_least_0=dict(lr=lr, eps=eps, weight_decay=weight_decay),
            below_1={"b1": first, "b2": second, "shampoo_beta": shampoo_beta},
        )
        if frequency < 1 or max_side < 0:
            raise ValueError(f"SOAP frequency={frequency}, max_side={max_side}: expected at least 1, and at least 0")
        options = dict(betas=(first, second), shampoo_beta=shampoo_beta, eps=eps, weight_decay=weight_decay)
        super().__init__(params, dict(lr=lr, **options, frequency=frequency, max_side=max_side, foreach=foreach))
        self._most_steps: dict[Tensor, int] = {}

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        shapes = {"exp_avg": p.shape, "exp_avg_sq": p.shape, "step": torch.Size()}
        for side, axis in {"left": -2, "right": -1}.items() if p.ndim > 1 else ():
            if p.shape[axis] <= group["max_side"]:
                square = torch.Size((*p.shape[:-2], p.shape[axis], p.shape[axis]))
                shapes |= {side: square, f"basis_{side}": square}
        return shapes

    def new_state(self, p: Tensor, group: dict[str, Any]) -> State:
        state = super().new_state(p, group)
        for basis in (t for name, t in state.items() if name.startswith("basis")):
            basis.copy_(torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device))
        return state

    def _step_chunk(self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        super()._step_chunk(params, group, skip)
        for p in params:
            state = self.state[p]
            if ("left" in state or "right" in state) and (count := self._renewal(state, group["frequency"], skip)):
                assert p.grad is not None
                renew_bases(state, p.grad, first=count == 1, beta2=group["betas"][1])

    def _renewal(self, state: State, frequency: int, skip: Tensor | None) -> int:
        """The number of this step if the bases are renewed after it, else 0.

        The host knows how many steps there are at most; only when that number is due does it ask the device how many of
        them were not skipped, and whether this one was.
        """
        if isinstance(state["step"], FakeTensor):  # a rehearsal has no values, and is of the costly step
            return frequency + 1
        count = self._most_steps.get(state["step"], 0) + 1
        due = count == 1 or count % frequency == 0
        if due:
            count = int(state["step"])
            due = (skip is None or not bool(skip)) and (count == 1 or count % frequency == 0)
        self._most_steps[state["step"]] = count
        return count if due else 0

    def reference(self, p: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        state["step"] += 1
        names = ("lr", "betas", "shampoo_beta", "eps", "weight_decay")
        soap_(p, grad, state, int(state["step"]), **{name: group[name] for name in names})

    def fast(self, params: list[Tensor], grads: list[Tensor], states: list[State], group: Any) -> None:
        beta1, beta2 = group["betas"]
        means, variances = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        rotated = [rotate(grad, state) for grad, state in zip(grads, states, strict=True)]
        torch._foreach_mul_(variances, beta2)
        torch._foreach_addcmul_(variances, rotated, rotated, value=1 - beta2)
        denominators = torch._foreach_sqrt(variances)
        torch._foreach_div_(denominators, [(1 - beta2**t).sqrt().to(grads[0].dtype) for t in steps])
        torch._foreach_add_(denominators, group["eps"])
        turned = [rotate(mean, state) for mean, state in zip(means, states, strict=True)]
        quotients = torch._foreach_div(turned, denominators)
        directions = [rotate_back(d, state) for d, state in zip(quotients, states, strict=True)]
        torch._foreach_mul_(directions, [(group["lr"] / (1 - beta1**t)).to(grads[0].dtype) for t in steps])
        torch._foreach_sub_(params, directions)
        for grad, state in zip(grads, states, strict=True):
            gather(grad, state, 1 - group["shampoo_beta"])
