"""A small model with everything that data parallelism stumbles over, and its training on one process."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Awkward(nn.Module):
    """A tied head, a frozen layer, a buffer, an expert for long inputs, a parameter nobody uses."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 9)
        self.frozen = nn.Linear(9, 9).requires_grad_(False)
        self.long = nn.Linear(9, 9, bias=False)
        self.out = nn.Linear(9, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", torch.tensor([1.0 + seed]))
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.frozen(torch.tanh(self.hidden(self.embed(tokens)))) * self.scale
        if len(tokens) > 3:
            h = h + self.long(h)
        return self.head(self.out(h))


def tokens_of(step: int, number: int) -> Tensor:
    """The micro-batch of a step: 0 to 6 tokens and their successors."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    length = int(torch.randint(0, 7, (1,), generator=generator)) if step % 5 else number % 3
    return torch.randint(0, 11, (length + 1,), generator=generator)


def backward(model: nn.Module, tokens: Tensor) -> int:
    """Add the gradient of the summed loss; the number of tokens it is a sum over."""
    if len(tokens) > 1:
        F.cross_entropy(model(tokens[:-1]), tokens[1:], reduction="sum").backward()
    return len(tokens) - 1


def weight_of(step: int, micro_batches: int) -> int:
    return max(1, sum(len(tokens_of(step, number)) - 1 for number in range(micro_batches)))


def divide(model: nn.Module, weight: float) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.div_(weight)


def accumulated(model: nn.Module, optimizer, micro_batches: int, steps: int) -> dict[str, Tensor]:
    """What the weights are on one process that accumulates."""
    for step in range(steps):
        optimizer.zero_grad()
        for number in range(micro_batches):
            backward(model, tokens_of(step, number))
        divide(model, weight_of(step, micro_batches))
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
