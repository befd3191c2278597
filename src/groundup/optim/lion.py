"""Lion: the sign of a momentum, so every coordinate moves by the same amount."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from groundup.optim.stepping import Stepping, check_options


def lion_(
    param: Tensor, grad: Tensor, momentum: Tensor, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    r"""One update of one tensor, in place.

        theta <- theta (1 - lr * decay)
        theta <- theta - lr * sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g

    The step is taken with a shorter memory (b1) than what is kept (b2), as with Nesterov. Scaling all gradients by one
    positive factor changes nothing, so clipping by the norm does nothing beyond weighing this batch against m.

    The sign of NaN is 0: a NaN gradient freezes its coordinate for good and shows in no weight. Look at the gradient's
    norm, as the trainer does.

    Chen et al. 2023, algorithm 2 (arXiv:2302.06675).
    """
    param.mul_(1 - lr * weight_decay)
    param.add_(momentum.lerp(grad, 1 - betas[0]).sign_(), alpha=-lr)
    momentum.lerp_(grad, 1 - betas[1])


class Lion(Stepping):
    """Lion over a model, parameters, or parameter groups. State per parameter: `momentum`, half of AdamW's.

    A sign is larger than Adam's quotient, so the rate is 3 to 10 times lower than AdamW's, and the decay as many times
    higher: their product is what pulls (the paper's section 5). foreach: as for `SGD`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.3,
        foreach: bool = True,
    ):
        first, second = betas
        check_options("Lion", at_least_0=dict(lr=lr, weight_decay=weight_decay), below_1={"b1": first, "b2": second})
        super().__init__(params, dict(lr=lr, betas=(first, second), weight_decay=weight_decay, foreach=foreach))

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        return {"momentum": p.shape}

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        lion_(p, grad, state["momentum"], **{name: group[name] for name in ("lr", "betas", "weight_decay")})

    def fast(self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: Any) -> None:
        buffers = [state["momentum"] for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        signs = torch._foreach_lerp(buffers, grads, 1 - beta1)
        torch._foreach_sign_(signs)
        torch._foreach_add_(params, signs, alpha=-group["lr"])
        torch._foreach_lerp_(buffers, grads, 1 - beta2)
