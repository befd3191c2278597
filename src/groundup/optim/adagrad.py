"""AdaGrad: each coordinate's rate falls with the gradients that it has seen."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from groundup.optim.sgd import decayed
from groundup.optim.stepping import Stepping, check_options


def adagrad_(
    param: Tensor,
    grad: Tensor,
    sum_of_squares: Tensor,
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    r"""One update of one tensor, in place.

        s <- s + g^2          theta <- theta - lr * g / (sqrt(s) + eps)

    Nothing is forgotten, so with gradients of one size step t moves by lr / sqrt(t): a decay of the rate that is
    built in, which convex problems want and long runs do not. A rare token's row keeps a high rate until it is seen.

    Duchi et al. 2011, figure 1 with the diagonal of G_t (jmlr.org/papers/v12/duchi11a); eps outside of the root, as in
    torch, whose order of operations this is. Decay as in `sgd_`.
    """
    if decoupled:
        param.mul_(1 - lr * weight_decay)
    elif weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    sum_of_squares.addcmul_(grad, grad, value=1)
    param.addcdiv_(grad, sum_of_squares.sqrt().add_(eps), value=-lr)


class AdaGrad(Stepping):
    """AdaGrad over a model, parameters, or parameter groups. State per parameter: `sum_of_squares`.

    initial: the sum of squares before the first step; above 0 it keeps the first steps small.
    decoupled, foreach: as for `SGD`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.01,
        eps: float = 1e-10,
        initial: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        foreach: bool = True,
    ):
        check_options("AdaGrad", at_least_0=dict(lr=lr, eps=eps, initial=initial, weight_decay=weight_decay))
        options = dict(lr=lr, eps=eps, initial=initial, weight_decay=weight_decay, decoupled=decoupled)
        super().__init__(params, dict(**options, foreach=foreach))

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        return {"sum_of_squares": p.shape}

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"sum_of_squares": torch.full_like(p, group["initial"])}

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        names = ("lr", "eps", "weight_decay", "decoupled")
        adagrad_(p, grad, state["sum_of_squares"], **{name: group[name] for name in names})

    def fast(self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: Any) -> None:
        grads = decayed(params, grads, group["lr"], group["weight_decay"], group["decoupled"])
        sums = [state["sum_of_squares"] for state in states]
        torch._foreach_addcmul_(sums, grads, grads, value=1)
        roots = torch._foreach_sqrt(sums)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, grads, roots, value=-group["lr"])
