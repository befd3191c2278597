"""The update of AdamW for many tensors at once: one pass over memory. The formula is in `optim/adamw.py`."""

import torch
from torch import Tensor

from groundup.kernels._dispatch import op


@op
def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    skip: Tensor | None = None,
) -> None:
    """Update tensors of one device and one dtype in place by `optim.adamw.adamw_`, with torch's fused kernel.

    steps: of each tensor a float32 scalar, which counts this step, too. Where the scalar `skip` is 1 no parameter and
    no moment changes; the host is not asked.
    """
    torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
        params, grads, exp_avgs, exp_avg_sqs, [], steps, lr=lr, beta1=betas[0], beta2=betas[1],
        weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False, grad_scale=None, found_inf=skip,
    )  # fmt: skip
