"""AdamW: Adam with decoupled weight decay, as a readable reference and as one fused pass over memory."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from groundup import kernels
from groundup.optim.stepping import States, Stepping


def adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    r"""One AdamW update of one tensor, in place: the reference that the fused path is held to.

        theta <- theta (1 - lr * decay)
        m <- m + (1 - b1) (g - m)                 v <- b2 v + (1 - b2) g^2
        theta <- theta - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    `step` is t, counted from 1. The order of operations is torch's, so results agree to the bit.
    eps is added after the bias correction; added before it, it would weigh more in early steps.

    Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1; Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2,
    with the schedule multiplier folded into lr, so that decay shrinks with the rate.
    """
    beta1, beta2 = betas
    param.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    param.addcdiv_(exp_avg, denominator, value=-(lr / (1 - beta1**step)))


class AdamW(Stepping):
    """AdamW over a model, parameters, or parameter groups.

    A model is split by `groups`: no decay on norms, biases and embeddings. State per parameter: `exp_avg`,
    `exp_avg_sq` (its shape and dtype) and `step` (a scalar), so 8 bytes per fp32 parameter.

    fused: one kernel per (device, dtype) instead of seven passes over memory; `False` runs the reference.

    Raises ValueError for a group with an option that AdamW does not know.
    """

    fast_option = "fused"
    chunk_bytes = math.inf  # the kernel has no temporaries

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        fused: bool = True,
    ):
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"AdamW {name}={value}: expected a finite number, at least 0")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"AdamW betas={betas}: expected two numbers in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=fused))

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        """The states of one parameter by name."""
        return {"exp_avg": p.shape, "exp_avg_sq": p.shape, "step": torch.Size()}

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        state["step"] += 1
        adamw_(p, grad, state["exp_avg"], state["exp_avg_sq"], int(state["step"]), **options)

    def fast(
        self, params: list[Tensor], grads: list[Tensor], states: States, group: Any, skip: Tensor | None = None
    ) -> None:
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        kernels.adamw_step(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            steps,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            skip=skip,
        )
        if skip is not None:  # the kernel skips by itself, but for the count
            torch._foreach_sub_(steps, [skip] * len(steps))  # pyright: ignore[reportPrivateImportUsage]

    def skipping(self, params: list[Tensor], grads: list[Tensor], states: States, group: Any, skip: Tensor) -> None:
        self.fast(params, grads, states, group, skip)
