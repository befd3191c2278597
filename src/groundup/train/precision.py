"""What matrix products are computed in. Master weights, gradients and optimizer state stay in fp32."""

import logging
import re
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import nn

from groundup.config import nearest
from groundup.kernels.quantized_linear import MULTIPLES, Products, real
from groundup.model.products import set_products

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
    "fp8": torch.bfloat16,
    "mxfp8": torch.bfloat16,
    "int8": torch.bfloat16,
}
"""The type of activations under each precision."""

logger = logging.getLogger("groundup.train")
_said: set[str] = set()


def apply(model: nn.Module, precision: str) -> None:
    """Set `model.compute_dtype`, and how the linear layers of its blocks multiply.

    bf16    fp32's range, 8 bits of resolution: needs no loss scaling
    fp16    11 bits, but overflows at 65,504 and underflows at 6e-8: `train` scales the loss (see `scaler`). On a CPU
            it is slow, and that is said once
    fp8     bf16, but the linear layers of blocks multiply float8 with a scale per tensor
    mxfp8   the same with a scale per 32 numbers
    int8    bf16, but the linear layers of blocks multiply int8 with a scale per row, forward and for the gradient of
            their inputs: for a CPU with products of bytes

    With fp8, mxfp8 and int8 the embeddings, head, norms, routers and attention's own products stay in bf16, and so do
    experts and layers whose sizes are no multiples of 16 (32), which is said with their names. Where the device has no
    units for such products they are simulated, and that is said, too. Call it when the model is where it will train
    and has its adapters, and before `compile_blocks`.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}{nearest(precision, DTYPES)}")
    device = next((p.device.type for p in model.parameters()), "cpu")
    products = cast(Products, precision) if precision in MULTIPLES else None
    stay = set_products(model, products)
    model.compute_dtype = DTYPES[precision]  # type: ignore[assignment]
    if stay:
        names = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", path) for path in stay))
        _say_once(f"precision {precision!r}: these stay in bf16, as experts do and sizes that do not fit: {names}")
    if products is not None and device != "meta" and not real(products, device):
        _say_once(f"precision {precision!r} is simulated on this {device}: its numerics, not its speed")
    if precision == "fp16" and device == "cpu":
        _say_once("precision 'fp16' on a CPU is emulated, several times as slow as fp32; 'bf16' needs no loss scaling")


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def choose(seconds: Callable[[str], float], options: Iterable[str] = ("fp32", "bf16")) -> str:
    """The option with the least `seconds(option)`, a probe of the caller's (say, one timed step).

    The first option wins ties, and is kept unless another is at least 5 % faster: less precision should
    buy something.
    """
    options = list(options)
    times = {option: seconds(option) for option in options}
    best = min(options, key=lambda option: times[option])
    return best if times[best] < 0.95 * times[options[0]] else options[0]
