"""Number types: what they can hold, how finely, and where a language model uses them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NumberType:
    """`largest` and `smallest` normal positive number, `tiny` the smallest of all (subnormal), `eps` the step at 1."""

    name: str
    dtype: torch.dtype
    bits: int
    exponent_bits: int
    mantissa_bits: int
    largest: float
    smallest: float
    tiny: float
    eps: float
    used_for: str


# name, dtype, bits of the exponent
_TYPES = (
    ("fp32", torch.float32, 8, "master weights, optimizer states, sums, softmax, norms, losses"),
    ("bf16", torch.bfloat16, 8, "products and activations: the range of fp32, so gradients need no scaling"),
    ("fp16", torch.float16, 5, "products on GPUs without bf16; gradients below 6e-8 vanish, so losses are scaled"),
    ("fp8 e4m3", torch.float8_e4m3fn, 4, "weights and activations of products, with a scale per tensor or block"),
    ("fp8 e5m2", torch.float8_e5m2, 5, "gradients of products, with a scale: more range, less resolution"),
)


def number_types() -> list[NumberType]:
    """Read from torch, so that the table is what this machine computes with.

    fp8: Micikevicius et al. 2022 (arXiv:2209.05433); e4m3 has no infinities, which gives it 448 in place of 240.
    """
    made = []
    for name, dtype, exponent, use in _TYPES:
        info = torch.finfo(dtype)
        mantissa = info.bits - 1 - exponent
        tiny = info.smallest_normal * 2.0**-mantissa
        made.append(
            NumberType(name, dtype, info.bits, exponent, mantissa, info.max, info.smallest_normal, tiny, info.eps, use)
        )
    return made


def underflow(value: float) -> dict[str, float]:
    """What a number becomes in each type. The lecture's 1e-8 is 0 in fp16 and is kept, roughly, in bf16.

    >>> kept = underflow(1e-8)
    >>> kept["fp16"], 0 < kept["bf16"] < 1.1e-8
    (0.0, True)
    """
    return {
        kind.name: torch.tensor(value, dtype=torch.float64).to(kind.dtype).double().item() for kind in number_types()
    }
