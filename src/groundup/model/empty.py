"""Memory for a model that was built on the meta device, where it has shapes alone."""

import torch
from torch import nn


def to_empty(model: nn.Module, device: torch.device) -> None:
    """Give every parameter and buffer memory that nothing is written to, on `device`.

    As `Module.to_empty`, which asks the meta device what an empty tensor like a parameter would be: an answer in
    Python that imports sympy, a third as long as importing torch.
    """
    model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
