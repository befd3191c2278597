"""The short causal convolution in front of a recurrence: each channel mixes its own last few tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from groundup.kernels._dispatch import op


@op
def causal_convolution(
    x: Float[Tensor, "batch seq channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, " channels"] | None,
    before: Float[Tensor, "batch earlier channels"],
    resets: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq channels"]:
    r"""y_t = bias + sum_i weight_i x_{t - kernel + 1 + i}: the last weight is for the token itself.

    `before` holds the kernel - 1 inputs before the first. A token with `resets`, and those after it, see nothing from
    before it. Summed in float32 at least, and rounded to x's type once.

    Depthwise, as in Mamba: Gu & Dao 2023, section 3.4 (arXiv:2312.00752).
    """
    seq, kernel = x.shape[1], weight.shape[1]
    assert before.shape[1] == kernel - 1, f"{before.shape[1]} inputs before the first; the kernel needs {kernel - 1}"
    inputs = torch.cat([before.to(x.dtype), x], 1)
    inputs = inputs if x.dtype == torch.float64 else inputs.float()
    y = 0.0 if bias is None else bias.to(inputs.dtype)
    document = None if resets is None else resets.cumsum(1)
    for i in range(kernel):
        tap = inputs[:, i : i + seq]
        if document is not None:
            then = F.pad(document, (kernel - 1, 0))[:, i : i + seq]
            tap = tap * (then == document)[..., None]
        y = y + tap * weight[:, i].to(inputs.dtype)
    assert isinstance(y, Tensor)
    return y.to(x.dtype)
