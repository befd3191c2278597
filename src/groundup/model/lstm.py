"""The LSTM as a mixer: what language models were made of before attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.model.cache import Cache
from groundup.model.linear import Linear
from groundup.model.position import Layout, Rope
from groundup.model.recurrence import check_sizes, empty_state, first_tokens, real_tokens


@dataclass(frozen=True)
class LSTMConfig:
    """`d_hidden` cells."""

    d_hidden: int

    def __post_init__(self) -> None:
        check_sizes("lstm", self, "d_hidden")

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """None: the recurrence knows the order of its tokens."""
        return []


class GateLinear(Linear):
    """A Linear onto the four gates, with the forget gate's bias at 1, so that cells begin by remembering.

    Jozefowicz et al. 2015 (proceedings.mlr.press/v37/jozefowicz15).
    """

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        super().reset_weights(generator, scale)
        assert self.bias is not None
        with torch.no_grad():
            self.bias.chunk(4)[1].fill_(1.0)


class LSTM(nn.Module):
    """See `kernels.lstm`. `wx` (with all biases) and `wh` map to the gates i, f, g, o; `wo` back to the model.

    wx and wh are weight_ih and weight_hh of torch.nn.LSTM, whose two biases add up to ours. Hochreiter &
    Schmidhuber 1997.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)
    read_as_matrix: ClassVar[tuple[str, ...]] = ("wh",)

    def __init__(self, config: LSTMConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        self.wx = GateLinear(d_model, 4 * config.d_hidden, bias=True)
        self.wh = Linear(config.d_hidden, 4 * config.d_hidden)
        self.wo = Linear(config.d_hidden, d_model)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        like = empty_state(x, self.config.d_hidden)
        hidden, cell = cache.state(like, like)
        out, hidden, cell = kernels.lstm(
            self.wx(x), self.wh.weight, hidden, cell, first_tokens(layout), real_tokens(layout)
        )
        cache.keep(layout.positions, hidden, cell)
        return self.wo(out)
