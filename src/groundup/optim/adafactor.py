"""Adafactor: Adam's second moment of a matrix from its row and column sums, so that state is hardly any."""

# pyright: reportPrivateImportUsage=false
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from groundup.optim.stepping import Stepping, check_options


def adafactor_(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    step: int,
    *,
    lr: float,
    beta2_decay: float,
    eps: tuple[float | None, float],
    clip: float,
    weight_decay: float,
    relative_step: bool,
) -> None:
    r"""One update of one tensor, in place; `step` is t, counted from 1.

        w = t^beta2_decay
        R <- R + w (row means of g^2 - R)      C <- C + w (column means of g^2 - C)      V = R C / mean(R)
        u = g / sqrt(V)                        u <- u / max(1, RMS(u) / clip)
        theta <- theta (1 - lr * decay) - alpha u
        alpha = max(eps2, RMS(theta)) * min(lr, 1 / sqrt(t))      (or lr, without the relative step)

    R C / mean(R) is the matrix of rank one that is nearest in the I-divergence: exact where the squares of the gradient
    are a product of a row's and a column's part. A vector keeps its whole V. The memory of t^-0.8 grows with time, and
    its first weight is 1, so nothing needs a bias correction. eps1 keeps V away from zero, eps2 a tensor of zeros from
    staying so. Leading axes are a batch of matrices, and the RMS is of the whole tensor.

    Shazeer & Stern 2018, algorithm 4 for matrices and 5 for vectors, without momentum (arXiv:1804.04235). eps1 stands
    at the root instead of being added to g^2, and the decay uses lr, both as in torch, whose order of operations this
    is.
    """
    weight = step**beta2_decay
    eps1 = torch.finfo(param.dtype).eps if eps[0] is None else eps[0]
    scale = max(eps[1], param.norm(2).item() / param.numel() ** 0.5) if relative_step else 1.0
    rate = scale * (min(lr, 1 / step**0.5) if relative_step else lr)
    param.mul_(1 - lr * weight_decay)
    if grad.ndim > 1:
        rows, columns = state["row_mean"], state["column_mean"]
        rows.lerp_(torch.norm(grad, dim=-1, keepdim=True).square_().div_(grad.size(-1)), weight)
        columns.lerp_(torch.norm(grad, dim=-2, keepdim=True).square_().div_(grad.size(-2)), weight)
        variance = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=eps1))
    else:
        variance = state["mean_square"].lerp_(grad * grad, weight).clone()
    update = variance.clamp_(min=eps1 * eps1).rsqrt_().mul_(grad)
    too_large = max(1.0, update.norm(2).item() / (update.numel() ** 0.5 * clip))
    param.add_(update, alpha=-rate / too_large)


class Adafactor(Stepping):
    """Adafactor over a model, parameters, or parameter groups.

    State: `row_mean` and `column_mean`, rows + columns numbers for a matrix (1.6 % of AdamW's two for 64 x 64, 0.1 %
    for 1024 x 1024), `mean_square` for a vector, and `step`.

    relative_step: rates are shares of each tensor's RMS, and fall as 1 / sqrt(t) once that is below lr; `False` moves
    by lr, as a schedule has it.
    clip: largest RMS of an update before the rate.
    eps: (least root of V, None for the type's epsilon; least RMS of a tensor).
    foreach: tensors of one shape as a stack, without a visit to the host; `False` runs the reference. Equal to
    rounding.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.01,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        clip: float = 1.0,
        weight_decay: float = 0.0,
        relative_step: bool = True,
        foreach: bool = True,
    ):
        check_options("Adafactor", at_least_0=dict(lr=lr, weight_decay=weight_decay, eps1=eps[0] or 0.0, eps2=eps[1]))
        if not (beta2_decay <= 0 and clip > 0):
            raise ValueError(f"Adafactor beta2_decay={beta2_decay}, clip={clip}: expected at most 0, and above 0")
        options = dict(beta2_decay=beta2_decay, eps=tuple(eps), clip=clip, weight_decay=weight_decay)
        super().__init__(params, dict(lr=lr, **options, relative_step=relative_step, foreach=foreach))

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        if p.ndim < 2:
            return {"mean_square": p.shape, "step": torch.Size()}
        rows, columns = (*p.shape[:-1], 1), (*p.shape[:-2], 1, p.shape[-1])
        return {"row_mean": torch.Size(rows), "column_mean": torch.Size(columns), "step": torch.Size()}

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        state["step"] += 1
        names = ("lr", "beta2_decay", "eps", "clip", "weight_decay", "relative_step")
        adafactor_(p, grad, state, int(state["step"]), **{name: group[name] for name in names})

    def fast(self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: Any) -> None:
        by_shape = defaultdict(list)
        for parts in zip(params, grads, states, strict=True):
            by_shape[parts[0].shape].append(parts)
        for alike in by_shape.values():
            some, their_grads, their_states = (list(column) for column in zip(*alike, strict=True))
            _step_stack(some, their_grads, their_states, group)


def _step_stack(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: Any) -> None:
    """`adafactor_` for tensors of one shape, whose first axis becomes that of the stack."""
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    spread = (-1, *[1] * max(1, params[0].ndim))  # of a scalar per tensor, over the tensor
    stack = torch.stack(grads).reshape(len(params), *(params[0].shape or (1,)))
    count = torch.stack(steps).to(stack.dtype).reshape(spread)
    eps1 = torch.finfo(stack.dtype).eps if group["eps"][0] is None else group["eps"][0]
    update = _variance(stack, states, count ** group["beta2_decay"], eps1).clamp_(min=eps1 * eps1).rsqrt_().mul_(stack)
    rate = group["lr"] * torch.ones_like(count)
    if group["relative_step"]:
        sizes = torch.stack(torch._foreach_norm(params)).reshape(spread) / params[0].numel() ** 0.5
        rate = sizes.clamp(min=group["eps"][1]) * count.rsqrt().clamp(max=group["lr"])
    rms = torch.linalg.vector_norm(update.flatten(1), dim=1).reshape(spread) / params[0].numel() ** 0.5
    update *= rate / (rms / group["clip"]).clamp(min=1.0)
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_sub_(params, [u.view_as(p) for u, p in zip(update.unbind(), params, strict=True)])


def _variance(grads: Tensor, states: list[dict[str, Tensor]], weight: Tensor, eps1: float) -> Tensor:
    """The second moments of a stack, after the states have taken in its gradients."""
    if "mean_square" in states[0]:
        return _lerp([state["mean_square"] for state in states], grads.square(), weight)
    rows = _lerp([state["row_mean"] for state in states], _mean_square(grads, -1), weight)
    columns = _lerp([state["column_mean"] for state in states], _mean_square(grads, -2), weight)
    return (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=eps1))


def _mean_square(grads: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(grads, dim=dim, keepdim=True).square_().div_(grads.shape[dim])


def _lerp(states: list[Tensor], towards: Tensor, weight: Tensor) -> Tensor:
    stack = torch.stack(states).reshape(towards.shape).lerp_(towards, weight.expand_as(towards))
    torch._foreach_copy_(states, [s.view_as(t) for s, t in zip(stack.unbind(), states, strict=True)])
    return stack
