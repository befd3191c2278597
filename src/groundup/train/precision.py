"""The dtype that activations are computed in. Master weights, gradients and optimizer state stay in fp32."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from groundup.config import nearest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def apply(model: nn.Module, precision: str) -> None:
    """Set `model.compute_dtype` to "fp32", "bf16", "fp16" or "fp64".

    bf16 has fp32's range and needs no loss scaling. fp16 overflows at 65,504; on a CPU it is also emulated
    and slow, so it is refused there.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}{nearest(precision, DTYPES)}")
    device = next((p.device.type for p in model.parameters()), "cpu")
    if precision == "fp16" and device == "cpu":
        raise ValueError("precision 'fp16' on a CPU: its products are emulated and overflow at 65,504; use 'bf16'")
    model.compute_dtype = DTYPES[precision]  # type: ignore[assignment]


def choose(seconds: Callable[[str], float], options: Iterable[str] = ("fp32", "bf16")) -> str:
    """The option with the least `seconds(option)`, a probe of the caller's (say, one timed step).

    The first option wins ties, and is kept unless another is at least 5 % faster: less precision should
    buy something.
    """
    options = list(options)
    times = {option: seconds(option) for option in options}
    best = min(options, key=lambda option: times[option])
    return best if times[best] < 0.95 * times[options[0]] else options[0]
