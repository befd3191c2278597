"""RMSProp: AdaGrad with a memory that fades."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from groundup.optim.sgd import decayed
from groundup.optim.stepping import Stepping, check_options


def rmsprop_(
    param: Tensor,
    grad: Tensor,
    mean_square: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    r"""One update of one tensor, in place.

        v <- alpha v + (1 - alpha) g^2         d = g / (sqrt(v) + eps)
        m <- mu m + d  (with momentum)         theta <- theta - lr m  (or d)

    v begins at zero and is not corrected for it, so the first step moves by lr / sqrt(1 - alpha): ten times lr at 0.99.
    Adam is this with the correction, and with its momentum on the gradient instead of on d.

    Tieleman & Hinton 2012, lecture 6.5 of "Neural Networks for Machine Learning". eps outside of the root, as in torch,
    whose order of operations this is. Decay as in `sgd_`.
    """
    if decoupled:
        param.mul_(1 - lr * weight_decay)
    elif weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    mean_square.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
    denominator = mean_square.sqrt().add_(eps)
    if momentum_buffer is None:
        param.addcdiv_(grad, denominator, value=-lr)
    else:
        momentum_buffer.mul_(momentum).addcdiv_(grad, denominator)
        param.add_(momentum_buffer, alpha=-lr)


class RMSProp(Stepping):
    """RMSProp over a model, parameters, or parameter groups.

    State per parameter: `mean_square`, and `momentum` where there is one. decoupled, foreach: as for `SGD`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        foreach: bool = True,
    ):
        check_options(
            "RMSProp",
            at_least_0=dict(lr=lr, eps=eps, weight_decay=weight_decay),
            below_1=dict(alpha=alpha, momentum=momentum),
        )
        options = dict(alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay, decoupled=decoupled)
        super().__init__(params, dict(lr=lr, **options, foreach=foreach))

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        return {"mean_square": p.shape} | ({"momentum": p.shape} if group["momentum"] else {})

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        names = ("lr", "alpha", "eps", "momentum", "weight_decay", "decoupled")
        rmsprop_(p, grad, state["mean_square"], state.get("momentum"), **{name: group[name] for name in names})

    def fast(self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: Any) -> None:
        grads = decayed(params, grads, group["lr"], group["weight_decay"], group["decoupled"])
        squares = [state["mean_square"] for state in states]
        torch._foreach_mul_(squares, group["alpha"])
        torch._foreach_addcmul_(squares, grads, grads, value=1 - group["alpha"])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        if not group["momentum"]:
            torch._foreach_addcdiv_(params, grads, roots, value=-group["lr"])
            return
        buffers = [state["momentum"] for state in states]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcdiv_(buffers, grads, roots)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])
