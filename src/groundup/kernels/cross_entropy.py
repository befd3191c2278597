"""Cross-entropy, and its fusion with the head so that no (tokens, vocab) tensor ever exists."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.kernels._dispatch import op

Scalar = Float[Tensor, ""]


@op
def cross_entropy(
    logits: Float[Tensor, "*tokens vocab"],
    targets: Int[Tensor, "*tokens"],
    weights: Float[Tensor, "*tokens"] | None = None,
    z_loss: float = 0.0,
) -> tuple[Scalar, Scalar]:
    r"""(sum_t w_t (lse_t - logits_t[target_t] + z_loss * lse_t^2), sum_t w_t), in nats.

    lse is the log-sum-exp, computed in float32. A negative target has weight zero. The two sums, not
    their ratio, so that micro-batches and ranks can be added up before dividing. z_loss pulls lse
    towards 0 (Chowdhery et al. 2022, section 5, arXiv:2204.02311).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    weights = _weights(targets, weights, logits.dtype)
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, targets.clamp(min=0)[..., None].long())[..., 0]
    losses = lse - picked + z_loss * lse.square()
    # torch.where, because a weight of 0 times an infinite loss is NaN.
    return torch.where(weights != 0, losses * weights, 0.0).sum(), weights.sum()


@op
def linear_cross_entropy(
    hidden: Float[Tensor, "*tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "*tokens"],
    weights: Float[Tensor, "*tokens"] | None = None,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    compiled: bool = False,
) -> tuple[Scalar, Scalar]:
    r"""`cross_entropy(softcap(hidden @ weight.T), targets, weights, z_loss)`, `chunk` tokens at a time.

    The forward pass also computes both gradients, since a chunk's logits are at hand then: three matrix
    products in all, and logits memory of chunk x vocab. Matrix products run in hidden's type, the softmax
    in float32, and weight's gradient is accumulated over chunks in float32 (each chunk reads and writes
    it once, so chunks are longer for big vocabularies). Differentiable once. `compiled` fuses what lies between
    the matrix products with torch.compile; outside of a graph that is compiled anyway.
    """
    rows = hidden.flatten(0, -2)
    sums = _weights(targets, weights, torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    chunk = _chunk(weight.shape[0]) if chunk is None else chunk
    total = _LinearCrossEntropy.apply(rows, weight, targets.flatten(), sums.flatten(), chunk, softcap, z_loss, compiled)
    return total, sums.sum()


def _chunk(vocab: int) -> int:
    return 512 if vocab <= 16_384 else 1024


def _weights(targets: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    known = targets >= 0
    return known.to(dtype) if weights is None else torch.where(known, weights.to(dtype), 0.0)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        chunk: int,
        softcap: float | None,
        z_loss: float,
        compiled: bool,
    ) -> Tensor:
        chunk_loss, add = (_compiled(_pointwise_chunk_loss), _compiled(_add)) if compiled else (_chunk_loss, _add)
        head = weight.to(hidden.dtype)
        total = weights.new_zeros(())
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        d_hidden: list[Tensor] = []
        d_weight = torch.zeros_like(weight, dtype=weights.dtype) if need_weight else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            h = hidden[part]
            loss, d_logits = chunk_loss(h @ head.T, targets[part], weights[part], softcap, z_loss)
            total = total + loss
            if need_hidden:
                d_hidden.append(d_logits @ head)
            if d_weight is not None:
                add(d_weight, d_logits.T @ h)
        ctx.save_for_backward(
            torch.cat(d_hidden) if d_hidden else torch.zeros_like(hidden) if need_hidden else None, d_weight
        )
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else _times(d_hidden, grad).to(d_hidden.dtype),
            None if d_weight is None else _times(d_weight, grad).to(ctx.weight_dtype),
            *[None] * 6,
        )


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """A factor of 1, which that of a loss itself is, costs a pass over memory; only on a CPU is it free to look."""
    is_one = factor.device.type == "cpu" and not torch.compiler.is_compiling() and bool(factor == 1)
    return gradient if is_one else gradient * factor


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _add(total: Tensor, part: Tensor) -> None:
    """total += part, of a narrower type. Compiled it is one pass; torch's own converts the part first."""
    total += part


def _chunk_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, softcap: float | None, z_loss: float
) -> tuple[Tensor, Tensor]:
    """(sum of weighted losses in weights' type, its gradient with respect to the logits in theirs).

    d loss / d logits = w * ((1 + 2 z lse) softmax - onehot), times 1 - (logits/c)^2 under a soft cap.
    """
    dtype = logits.dtype
    if softcap is not None:
        logits = softcap * torch.tanh(logits.to(weights.dtype) / softcap)
    gradient = logits.softmax(-1, dtype=weights.dtype)
    # The largest probability is at least 1 / vocab, so its logarithm is exact where the target's is not.
    # This takes fewer passes over the chunk than logsumexp does.
    lse = logits.amax(-1, keepdim=True).to(weights.dtype) - gradient.amax(-1, keepdim=True).log()
    index, w = targets.clamp(min=0).long()[:, None], weights[:, None]
    losses = lse - logits.gather(-1, index) + z_loss * lse.square()
    gradient.mul_(w * (1 + 2 * z_loss * lse)).scatter_add_(-1, index, -w)
    if softcap is not None:
        gradient.mul_(1 - (logits / softcap).square())
    return torch.where(w != 0, losses * w, 0.0).sum(), gradient.to(dtype)


def _pointwise_chunk_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, softcap: float | None, z_loss: float
) -> tuple[Tensor, Tensor]:
    """`_chunk_loss` for a compiler: without a scatter nothing of the chunk's size is written but the result."""
    dtype, logits = logits.dtype, logits.to(weights.dtype)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    largest = logits.amax(-1, keepdim=True)
    exponentials = (logits - largest).exp()
    total = exponentials.sum(-1, keepdim=True)
    lse = largest + total.log()
    index, w = targets.clamp(min=0).long()[:, None], weights[:, None]
    losses = lse - logits.gather(-1, index) + z_loss * lse.square()
    is_target = torch.arange(logits.shape[-1], device=logits.device) == index
    gradient = w * (exponentials * ((1 + 2 * z_loss * lse) / total) - is_target.to(weights.dtype))
    if softcap is not None:
        gradient = gradient * (1 - (logits / softcap).square())
    return torch.where(w != 0, losses * w, 0.0).sum(), gradient.to(dtype)
