"""y = x W^T whose matrix products (forward, and both of the backward pass) read operands of eight bits.

    forward   Y  = Q(X) Q(W)^T          contracts d_in
    backward  dX = Q'(dY) Q(W)          contracts d_out
              dW = Q'(dY)^T Q(X)        contracts the rows (tokens)

fp8     one scale per tensor, e4m3 forward, e5m2 for gradients (Micikevicius et al. 2022, arXiv:2209.05433). A scale
        that is the same everywhere can be moved out of any of the products, so the backward pass reads the very bytes
        that the forward pass made.
mxfp8   e4m3 throughout, a power of two for each 32 numbers along the contraction (Rouhani et al. 2023,
        arXiv:2310.10537): each operand is quantised anew for each product, from the type that it is kept in. Gradients
        are e4m3, too: with so few numbers to a scale they need resolution more than range (Mishra et al. 2025,
        arXiv:2506.08027).
int8    with a scale for each row that is contracted: of X and of W, of dY and of W^T (SwitchBack; Wortsman et al. 2023,
        arXiv:2304.13013). dW, whose sums go over all tokens, has a scale for each column of dY and of X, anew in each
        block of 256 tokens; SwitchBack leaves it in X's type

Sums are in float32, of int8 exact. Rounding has the gradient of the identity ("straight through").
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from groundup.kernels._compiler import constant
from groundup.kernels.int8_product import multiplies_bytes, traced_int8_product, traced_int8_transposed_product
from groundup.kernels.quantize import E4M3, E5M2, Quantized, dequantize, quantize_blocks, quantize_tensor

Products = Literal["fp8", "mxfp8", "int8"]
MULTIPLES: dict[Products, int] = {"fp8": 16, "mxfp8": 32, "int8": 32}
"""What d_in and d_out have to be multiples of, for matrix units to take them."""

_native: dict[str, bool] = {}


def quantized_linear(
    x: Float[Tensor, "*batch d_in"], weight: Float[Tensor, "d_out d_in"], products: Products
) -> Float[Tensor, "*batch d_out"]:
    """x @ weight.T in x's type; weight's gradient comes in weight's type.

    "fp8" uses the device's float8 units where it has them (`native`) and shapes fit. Everywhere else, and for "mxfp8"
    everywhere, products are simulated: the same operands, multiplied in float32; the numerics and not the speed.
    "int8" is real on a CPU with products of bytes (AVX-512 VNNI), for x in bfloat16.
    """
    rows = x.flatten(0, -2)
    if products == "fp8":
        fits = all(size % MULTIPLES["fp8"] == 0 for size in weight.shape)
        y = _Float8.apply(rows, weight, fits and native(x.device.type))
    elif products == "int8":
        y = _Int8.apply(rows, weight)
    else:
        y = _Microscaled.apply(rows, weight)
    return y.unflatten(0, x.shape[:-1])


def real(products: Products, device: str) -> bool:
    """Whether such products are made by units of this machine's device for them, and not simulated."""
    return {"fp8": native, "int8": multiplies_bytes}.get(products, lambda device: False)(device)


@constant  # an answer for the whole process, and no part of a graph
def native(device: str) -> bool:
    """Whether this machine's device of this type multiplies float8 matrices, found out by doing it once.

    On CUDA that is compute capability 8.9 (Ada) and later. On a CPU `torch._scaled_mm` exists, but is not faster than
    float32, and is not used.
    """
    if device not in _native:
        _native[device] = device == "cuda" and torch.cuda.is_available() and _multiplies_float8(device)
    return _native[device]


def _multiplies_float8(device: str) -> bool:
    with unset_fake_temporarily():
        one, a = torch.ones((), device=device), torch.ones(16, 16, device=device)
        try:
            sums = scaled_matmul(Quantized(a.to(E5M2), one), Quantized(a.to(E4M3), one), torch.float32, True)
        except RuntimeError:
            return False
        return bool((sums == 16).all())


def scaled_matmul(a: Quantized, b: Quantized, dtype: torch.dtype, on_units: bool) -> Float[Tensor, "rows columns"]:
    """A B^T of two matrices with one scale each: (sum of products of values, in float32) * s_a * s_b.

    `on_units` multiplies with `torch._scaled_mm`; a contraction that is no multiple of 16 is filled up with zeros.
    """
    if not on_units:
        return (a.values.float() @ b.values.float().T * (a.scales * b.scales)).to(dtype)
    left, right = (_filled(matrix.values) for matrix in (a, b))
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        left, right.T, a.scales, b.scales, out_dtype=dtype
    )


def _filled(values: Tensor) -> Tensor:
    """Row by row in memory, as the matrix units want both operands, and with a row length that they take."""
    missing = -values.shape[-1] % MULTIPLES["fp8"]
    if not missing:
        return values.contiguous()
    # Not every device can fill float8, but all know bytes, and a zero byte is a zero.
    return torch.nn.functional.pad(values.view(torch.uint8), (0, missing)).view(values.dtype)


class _Float8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, on_units: bool) -> Tensor:
        qx, qw = quantize_tensor(x, E4M3), quantize_tensor(weight, E4M3)
        ctx.save_for_backward(*qx, *qw)
        ctx.on_units, ctx.weight_dtype = on_units, weight.dtype
        return scaled_matmul(qx, qw, x.dtype, on_units)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_values, x_scale, w_values, w_scale = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        values, scale = quantize_tensor(grad, E5M2)
        d_x = d_weight = None
        if need_x:
            turned = Quantized(w_values.T, w_scale)
            d_x = scaled_matmul(Quantized(values, scale), turned, grad.dtype, ctx.on_units)
        if need_weight:
            columns = Quantized(values.T, scale), Quantized(x_values.T, x_scale)
            d_weight = scaled_matmul(*columns, ctx.weight_dtype, ctx.on_units)
        return d_x, d_weight, None


class _Int8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return traced_int8_product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        d_x = traced_int8_product(grad, weight.T) if need_x else None
        d_weight = traced_int8_transposed_product(grad, x).to(weight.dtype) if need_weight else None
        return d_x, d_weight


class _Microscaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _block_product(x, weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        d_x = _block_product(grad, weight.T).to(grad.dtype) if need_x else None
        d_weight = _block_product(grad.T, x.T).to(weight.dtype) if need_weight else None
        return d_x, d_weight


def _block_product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "columns inner"]) -> Float[Tensor, "rows columns"]:
    """A B^T with both quantised in blocks along `inner`; their powers of two are exact in float32."""
    return dequantize(quantize_blocks(a)) @ dequantize(quantize_blocks(b)).T
