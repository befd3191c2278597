"""Inputs for every operation, at any size: what a kernel is tried on before it is trusted, and what benchmarks time.

    example = rmsnorm(Draw("cuda", torch.bfloat16), Size())
    outputs_and_gradients = outcome(kernels.rmsnorm, example)

The same size gives the same numbers each time, so two implementations can be held against each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """Of a model and its batch. The defaults are small and awkward: no axis fills its last block."""

    batch: int = 2
    seq: int = 65
    d_model: int = 192
    d_ff: int = 513
    heads: int = 4
    kv_heads: int = 2
    d_head: int = 64
    vocab: int = 515
    experts: int = 4

    @property
    def tokens(self) -> int:
        return self.batch * self.seq


@dataclass(frozen=True)
class Example:
    """A call. `flops` are those of its matrix products, forward and backward; elementwise work is not counted.

    changed: which arguments an operation that returns nothing writes.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    flops: tuple[float, float] = (0.0, 0.0)
    changed: tuple[int, ...] = ()

    def tensors(self) -> list[Tensor]:
        return list(tensors_of((self.args, list(self.kwargs.values()))))

    def leaves(self) -> list[Tensor]:
        """What a gradient is wanted for."""
        return [t for t in self.tensors() if t.requires_grad]


class Draw:
    """Random tensors on a device; a number drawn in bfloat16 is the rounded one of float32."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, grad: bool = True, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self._generator, device=self.device) * scale
        return values.to(dtype or self.dtype).requires_grad_(grad)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self._generator, device=self.device)


Builder = Callable[[Draw, Size], Example]


def softmax(draw: Draw, size: Size) -> Example:
    return Example((draw.normal(size.tokens, size.vocab, scale=3.0),))


def rmsnorm(draw: Draw, size: Size) -> Example:
    return Example((draw.normal(size.tokens, size.d_model), draw.normal(size.d_model)))


def layernorm(draw: Draw, size: Size) -> Example:
    return Example((draw.normal(size.tokens, size.d_model), draw.normal(size.d_model), draw.normal(size.d_model)))


def add_rmsnorm(draw: Draw, size: Size) -> Example:
    x, residual = draw.normal(size.tokens, size.d_model), draw.normal(size.tokens, size.d_model)
    return Example((x, residual, draw.normal(size.d_model)))


def add_layernorm(draw: Draw, size: Size) -> Example:
    before = add_rmsnorm(draw, size)
    return Example((*before.args, draw.normal(size.d_model)))


def gated(draw: Draw, size: Size) -> Example:
    return Example((draw.normal(size.tokens, size.d_ff), draw.normal(size.tokens, size.d_ff), "silu"))


def rotate(draw: Draw, size: Size) -> Example:
    angles = draw.normal(1, size.seq, 1, size.d_head // 2, scale=3.0, grad=False, dtype=torch.float32)
    return Example((draw.normal(size.batch, size.seq, size.heads, size.d_head), angles.cos(), angles.sin()))


def cross_entropy(draw: Draw, size: Size) -> Example:
    return Example((draw.normal(size.tokens, size.vocab, scale=3.0), draw.integers(size.vocab, size.tokens)))


def linear_cross_entropy(draw: Draw, size: Size) -> Example:
    """The forward pass computes both gradients too."""
    hidden = draw.normal(size.tokens, size.d_model)
    weight = draw.normal(size.vocab, size.d_model, scale=size.d_model**-0.5)
    product = 2.0 * size.tokens * size.d_model * size.vocab
    return Example((hidden, weight, draw.integers(size.vocab, size.tokens)), flops=(3 * product, 0.0))


def attention(draw: Draw, size: Size) -> Example:
    """Causal. The backward pass has five products where the forward has two."""
    q = draw.normal(size.batch, size.seq, size.heads, size.d_head)
    k, v = (draw.normal(size.batch, size.seq, size.kv_heads, size.d_head) for _ in range(2))
    positions = torch.arange(size.seq, device=draw.device).expand(size.batch, -1)
    forward = 4.0 * size.batch * size.heads * size.d_head * size.seq * (size.seq + 1) / 2
    return Example((q, k, v, positions, positions), {"causal_from_zero": True}, (forward, 2.5 * forward))


def attention_in_a_window(draw: Draw, size: Size) -> Example:
    window = max(1, size.seq // 4)
    full = attention(draw, size)
    seen = window * (window + 1) / 2 + (size.seq - window) * window
    share = seen / (size.seq * (size.seq + 1) / 2)
    return Example(full.args, {**full.kwargs, "window": window}, (full.flops[0] * share, full.flops[1] * share))


def paged_attention(draw: Draw, size: Size) -> Example:
    """The newest token of each sequence over pages of 16 tokens, in no order; the last is shorter than the others."""
    pages = -(-size.seq // 16)
    q = draw.normal(size.batch, 1, size.heads, size.d_head, grad=False)
    keys, values = (draw.normal(size.batch * pages * 16, size.kv_heads, size.d_head, grad=False) for _ in range(2))
    order = torch.arange(size.batch * pages - 1, -1, -1, device=draw.device).view(pages, size.batch).T.contiguous()
    ends = torch.full((size.batch, 1), size.seq - 1, device=draw.device)
    ends[-1:] = size.seq // 2
    flops = 4.0 * size.batch * size.heads * size.d_head * size.seq
    return Example((q, keys, values, ends, order), {"page_size": 16}, (flops, 0.0))


def paged_attention_in_a_window(draw: Draw, size: Size) -> Example:
    full = paged_attention(draw, size)
    return Example(full.args, {**full.kwargs, "window": max(1, size.seq // 4), "sink_tokens": 3})


def grouped_matmul(draw: Draw, size: Size) -> Example:
    """Experts of unequal numbers of rows, one of them with none."""
    weights = draw.normal(size.experts, size.d_ff, size.d_model, scale=size.d_model**-0.5)
    shares = torch.arange(size.experts, device=draw.device, dtype=torch.float64)
    ends = (shares.cumsum(0) / shares.sum() * size.tokens).long()
    flops = 2.0 * size.tokens * size.d_model * size.d_ff
    return Example((draw.normal(size.tokens, size.d_model), weights, ends), flops=(flops, 2 * flops))


def gated_linear(draw: Draw, size: Size) -> Example:
    q, k = (draw.normal(size.batch, size.seq, size.heads, size.d_head, scale=size.d_head**-0.5) for _ in range(2))
    v = draw.normal(size.batch, size.seq, size.heads, size.d_head)
    return Example((q, k, v, -draw.normal(size.batch, size.seq, size.heads, 1, grad=False).abs() * 0.1))


def gated_delta(draw: Draw, size: Size) -> Example:
    linear = gated_linear(draw, size)
    q, k, v, decay = linear.args
    k = torch.nn.functional.normalize(k.detach(), dim=-1).requires_grad_()
    beta = draw.normal(size.batch, size.seq, size.heads, grad=False).sigmoid()
    return Example((q, k, v, decay[..., 0], beta))


def causal_convolution(draw: Draw, size: Size) -> Example:
    x, weight = draw.normal(size.batch, size.seq, size.d_model), draw.normal(size.d_model, 4)
    return Example((x, weight, draw.normal(size.d_model), draw.normal(size.batch, 3, size.d_model, grad=False)))


def causal_convolution_of_documents(draw: Draw, size: Size) -> Example:
    resets = torch.arange(size.seq, device=draw.device).expand(size.batch, -1) % 17 == 5
    return Example((*causal_convolution(draw, size).args, resets))


def quantize(draw: Draw, size: Size) -> Example:
    return Example((draw.normal(size.tokens, size.d_model, grad=False),))


def quantize_to_int8(draw: Draw, size: Size) -> Example:
    return Example((*quantize(draw, size).args, torch.int8))


def int8_product(draw: Draw, size: Size) -> Example:
    """Of a feed-forward layer; the matrix is a master weight, float32."""
    x = draw.normal(size.tokens, size.d_model, grad=False)
    weight = draw.normal(size.d_ff, size.d_model, grad=False, dtype=torch.float32)
    return Example((x, weight), flops=(2.0 * size.tokens * size.d_model * size.d_ff, 0.0))


def int8_transposed_product(draw: Draw, size: Size) -> Example:
    a, b = (draw.normal(size.tokens, n, grad=False) for n in (size.d_ff, size.d_model))
    return Example((a, b), flops=(2.0 * size.tokens * size.d_model * size.d_ff, 0.0))


def adamw_step(draw: Draw, size: Size) -> Example:
    """Two tensors, at different steps. Updates in place, and returns nothing."""
    shapes = [(size.d_ff, size.d_model), (size.d_model,)]
    params, grads, means = ([draw.normal(*shape, grad=False) for shape in shapes] for _ in range(3))
    squares = [draw.normal(*shape, grad=False).square() for shape in shapes]
    steps = [torch.full((), float(n), device=draw.device) for n in (1, 1000)]
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    return Example((params, grads, means, squares, steps), options, changed=(0, 2, 3))


def newton_schulz(draw: Draw, size: Size) -> Example:
    rows, cols = sorted((size.d_model, size.d_ff))
    x = draw.normal(2, rows, cols, scale=(rows * cols) ** -0.5, grad=False)
    return Example((x, (3.4445, -4.7750, 2.0315)), flops=(2 * (4.0 * rows * rows * cols + 2.0 * rows**3), 0.0))


EXAMPLES: dict[str, tuple[Builder, ...]] = {
    "attention": (attention, attention_in_a_window),
    "paged_attention": (paged_attention, paged_attention_in_a_window),
    "linear_cross_entropy": (linear_cross_entropy,),
    "cross_entropy": (cross_entropy,),
    "rmsnorm": (rmsnorm,),
    "add_rmsnorm": (add_rmsnorm,),
    "gated": (gated,),
    "rotate": (rotate,),
    "adamw_step": (adamw_step,),
    "newton_schulz": (newton_schulz,),
    "softmax": (softmax,),
    "log_softmax": (softmax,),
    "layernorm": (layernorm,),
    "add_layernorm": (add_layernorm,),
    "grouped_matmul": (grouped_matmul,),
    "gated_linear_recurrent": (gated_linear,),
    "gated_linear_chunked": (gated_linear,),
    "gated_linear_parallel": (gated_linear,),
    "gated_delta_recurrent": (gated_delta,),
    "gated_delta_chunked": (gated_delta,),
    "causal_convolution": (causal_convolution, causal_convolution_of_documents),
    "int8_product": (int8_product,),
    "int8_transposed_product": (int8_transposed_product,),
    "quantize_tensor": (quantize, quantize_to_int8),
    "quantize_rows": (quantize, quantize_to_int8),
    "quantize_blocks": (quantize,),
}
"""By the name of the operation, most important first."""


def outcome(function: Callable[..., Any], example: Example) -> list[Tensor]:
    """Everything that a call gives: outputs (or what it changed in place), then the gradients of its leaves."""
    said = function(*example.args, **example.kwargs)
    outputs = list(tensors_of(example.args if said is None else said))
    leaves = example.leaves()
    differentiable = [t for t in outputs if t.requires_grad] if said is not None else []
    if leaves and differentiable:
        outputs += torch.autograd.grad(differentiable, leaves, [upstream(t) for t in differentiable], allow_unused=True)
    return [t.detach() for t in outputs if t is not None]


def upstream(output: Tensor) -> Tensor:
    """A gradient for an output, whose entries differ; 1 for a loss."""
    ramp = torch.linspace(1, -1, max(1, output.numel()), device=output.device)[: output.numel()]
    return ramp.view(output.shape).to(output.dtype)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists, from left to right."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from tensors_of(part)
