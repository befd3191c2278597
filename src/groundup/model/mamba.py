"""Mamba-2: a state space per head, whose step, input and output depend on the token."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.model.cache import Cache
from groundup.model.linear import Linear
from groundup.model.position import Layout, Rope
from groundup.model.recurrence import (
    GatedNorm,
    Rates,
    ShortConvolution,
    check_divides,
    check_sizes,
    empty_state,
    first_tokens,
    real_tokens,
    silenced,
)


@dataclass(frozen=True)
class Mamba2Config:
    """`num_heads` of `d_head` channels, each with a state of `d_state` x d_head; groups of heads share B and C.

    The inner width is num_heads * d_head, 2 d_model in the published models. `conv_kernel` is the number of tokens
    that the convolution sees, the token's own included. `bias` is on in_proj and out_proj.
    """

    num_heads: int
    d_head: int = 64
    d_state: int = 128
    num_groups: int = 1
    conv_kernel: int = 4
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self) -> None:
        check_sizes("mamba2", self, "num_heads", "d_head", "d_state", "num_groups", "conv_kernel")
        check_divides("mamba2", self, "num_groups", "num_heads", "each group's B and C serve the same number of heads")

    @property
    def d_inner(self) -> int:
        """Channels of x and of the gate z."""
        return self.num_heads * self.d_head

    @property
    def d_conv(self) -> int:
        """Channels that go through the convolution: x, B and C."""
        return self.d_inner + 2 * self.num_groups * self.d_state

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """None: the recurrence knows the order of its tokens."""
        return []


class Mamba2(Rates):
    r"""S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T and y_t = S_t^T C_t + D x_t per head, then a gated norm.

    x, B and C come through a short convolution, dt = softplus(dt + dt_bias), A = -exp(A_log). This is the gated
    linear recurrence with q = C, k = B, v = dt x and one decay per head (`kernels.gated_linear`).

    Names and shapes of parameters are those of the paper's code. Dao & Gu 2024, section 7 (arXiv:2405.21060).
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("out_proj",)

    def __init__(self, config: Mamba2Config, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        self.in_proj = Linear(d_model, config.d_inner + config.d_conv + config.num_heads, config.bias)
        self.conv = ShortConvolution(config.d_conv, config.conv_kernel, config.conv_bias)
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.D = nn.Parameter(torch.empty(config.num_heads))
        self.norm = GatedNorm(config.d_inner, norm_eps, config.num_groups, gate_first=True)
        self.out_proj = Linear(config.d_inner, d_model, config.bias)
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        """Of this module's own parameters."""
        self.reset_rates(generator)
        nn.init.ones_(self.D)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        config = self.config
        state = empty_state(x, config.num_heads, config.d_state, config.d_head)
        before, state = cache.state(self.conv.empty_state(x), state)
        z, mixed, dt = self.in_proj(x).split([config.d_inner, config.d_conv, config.num_heads], -1)
        mixed, before = self.conv(mixed, before, layout)
        y, state = self._scan(mixed, self.steps(dt), state, layout)
        cache.keep(layout.positions, before, state)
        return self.out_proj(self.norm(y, z))

    def _scan(self, mixed: Tensor, dt: Tensor, state: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        config, shared, real = self.config, self.config.num_groups * self.config.d_state, real_tokens(layout)
        # A step of length zero is no step: padding decays nothing and adds nothing.
        mixed, dt = silenced(mixed, real), silenced(dt, real)
        x, b, c = mixed.split([config.d_inner, shared, shared], -1)
        x = x.unflatten(-1, (-1, config.d_head))
        b, c = (y.unflatten(-1, (-1, config.d_state)) for y in (b, c))
        decay = self.log_decay(dt)[..., None]
        y, state = kernels.gated_linear(c, b, x * dt[..., None], decay, state, first_tokens(layout))
        return (y + x * self.D[:, None]).flatten(2).to(mixed.dtype), state
