"""Loss scaling: fp16 gradients kept inside fp16's range by a factor that the step divides out again."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST, LARGEST = 2.0**-24, 2.0**40
"""Of the factor. fp16's smallest number is 2^-24 and its largest about 2^16: beyond these limits either every gradient
that fp16 knows would be zero or every one would overflow, so what does not fit there is no matter of scale."""


class LossScaler:
    r"""A factor S on the loss: backward passes see S * loss, and the step divides gradients by S.

        S <- S / 2 and no update      if a gradient overflowed
        S <- 2 S                      after `growth_interval` updates in a row without one

    Gradients below 6e-8 are zero in fp16, while most of its range above is unused: S shifts them up. Powers of two
    change no digit. Micikevicius et al. 2018, section 3.2 (arXiv:1710.03740); factors as in `torch.amp.GradScaler`.

    The numbers live on the device, and so do decisions over them: nothing here waits for it.

    An overflow is a gradient that is not finite where the loss is. A loss that is not finite comes from the forward
    pass, which no S changes, and is left to the guard; so is an overflow at the smallest S.
    """

    def __init__(self, initial: float = 2.0**16, growth_interval: int = 2000) -> None:
        if not SMALLEST <= initial <= LARGEST:
            raise ValueError(f"LossScaler initial={initial}: expected a number from 2^-24 to 2^40, such as 2.0**16")
        if growth_interval < 1:
            raise ValueError(f"LossScaler growth_interval={growth_interval}: expected at least 1")
        self.growth_interval = growth_interval
        self.scale = torch.tensor(initial, dtype=torch.float32)
        self.good = torch.zeros((), dtype=torch.int32)

    def to(self, device: torch.device) -> "LossScaler":
        self.scale, self.good = self.scale.to(device), self.good.to(device)
        return self

    def overflowed(self, loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> Tensor:
        """Whether this step's gradient left the range of fp16, as a scalar on the device."""
        return torch.isfinite(loss) & ~torch.isfinite(norm) & (self.scale > SMALLEST)

    def update(self, overflow: Tensor | float, skip: Tensor | float = 0.0) -> None:
        """After a step. Where `skip` is 1 the step will be undone, and nothing changes."""
        overflow, skip = (torch.as_tensor(flag, device=self.scale.device) > 0 for flag in (overflow, skip))
        good = self.good + 1
        grown = good >= self.growth_interval
        scale = torch.where(overflow, self.scale / 2, torch.where(grown, self.scale * 2, self.scale))
        self.good = torch.where(skip, self.good, torch.where(overflow | grown, 0, good))
        self.scale = torch.where(skip, self.scale, scale.clamp(SMALLEST, LARGEST))

    def state(self) -> dict[str, Any]:
        """For a checkpoint. Waits for the device."""
        return {"scale": float(self.scale), "good": int(self.good)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale = torch.full_like(self.scale, state["scale"])
        self.good = torch.full_like(self.good, state["good"])
