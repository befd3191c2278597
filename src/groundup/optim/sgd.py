"""Stochastic gradient descent: plain, with momentum, and with Nesterov's."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from groundup.optim.stepping import Stepping, check_options


def sgd_(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decoupled: bool,
) -> None:
    r"""One update of one tensor, in place.

        coupled:    g <- g + decay * theta            (the gradient of decay / 2 * |theta|^2)
        decoupled:  theta <- theta (1 - lr * decay)
        m <- mu m + g                                 d = m, or g + mu m for Nesterov
        theta <- theta - lr d

    A steady gradient moves theta by lr / (1 - mu) a step, so a rate for momentum 0.9 is a tenth of one for none. Plain
    SGD takes the same step with either decay; with momentum a coupled one is carried on in m.

    Sutskever et al. 2013, eq. 1 to 4, with the rate outside of m as in torch (Polyak 1964 has it inside: the same
    while the rate is constant). The order of operations is torch's.
    """
    if decoupled:
        param.mul_(1 - lr * weight_decay)
    elif weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).add_(grad)
        grad = grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    param.add_(grad, alpha=-lr)


class SGD(Stepping):
    """SGD over a model, parameters, or parameter groups. State per parameter: `momentum`, and none without momentum.

    decoupled: shrink the weights beside the step, as AdamW does; `False` adds the decay to the gradient (L2).
    foreach: many tensors at once; `False` runs the reference, with the same bits.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        foreach: bool = True,
    ):
        check_options("SGD", at_least_0=dict(lr=lr, weight_decay=weight_decay), below_1=dict(momentum=momentum))
        if nesterov and not momentum:
            raise ValueError("SGD nesterov=True, momentum=0: Nesterov looks ahead along the momentum; give one")
        options = dict(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, decoupled=decoupled)
        super().__init__(params, dict(lr=lr, **options, foreach=foreach))

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        return {"momentum": p.shape} if group["momentum"] else {}

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        names = ("lr", "momentum", "nesterov", "weight_decay", "decoupled")
        sgd_(p, grad, state.get("momentum"), **{name: group[name] for name in names})

    def fast(self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: Any) -> None:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        grads = decayed(params, grads, lr, decay, group["decoupled"])
        if momentum:
            buffers = [state["momentum"] for state in states]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads)
            grads = list(torch._foreach_add(grads, buffers, alpha=momentum)) if group["nesterov"] else buffers
        torch._foreach_add_(params, grads, alpha=-lr)


def decayed(params: list[Tensor], grads: list[Tensor], lr: float, decay: float, decoupled: bool) -> list[Tensor]:
    """Shrink the parameters (decoupled), or return gradients that have the decay in them; of many tensors."""
    if decoupled:
        torch._foreach_mul_(params, 1 - lr * decay)
    elif decay:
        return list(torch._foreach_add(grads, params, alpha=decay))
    return grads
