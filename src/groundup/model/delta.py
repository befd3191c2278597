"""Gated DeltaNet: a memory that is corrected where a key is seen again, and that forgets."""

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

L2_EPS = 1e-6


@dataclass(frozen=True)
class GatedDeltaConfig:
    """`num_heads` memories of `d_key` x `d_value`. Fewer `num_key_heads` share queries and keys among heads.

    `conv_kernel` is the number of tokens that the convolution of q, k and v sees, the token's own included.
    """

    num_heads: int
    d_key: int
    d_value: int
    num_key_heads: int | None = None
    conv_kernel: int = 4

    def __post_init__(self) -> None:
        check_sizes("gated delta", self, "num_heads", "d_key", "d_value", "conv_kernel")
        if self.num_key_heads is not None:
            check_sizes("gated delta", self, "num_key_heads")
            why = "each query and key serves the same number of heads"
            check_divides("gated delta", self, "num_key_heads", "num_heads", why)

    @property
    def d_keys(self) -> int:
        """Channels of all keys."""
        return (self.num_key_heads or self.num_heads) * self.d_key

    @property
    def d_values(self) -> int:
        """Channels of all values."""
        return self.num_heads * self.d_value

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """None: the recurrence knows the order of its tokens."""
        return []


class GatedDelta(Rates):
    r"""The rule of `kernels.gated_delta` on short-convolved q, k, v, with an RMSNorm and a gate on every head's output.

    q and k have length 1, and q is divided by sqrt(d_key). beta = sigmoid(wb x) is how much of a correction is made,
    and exp(-exp(A_log) softplus(wa x + dt_bias)) what is left of the state.

    Yang et al. 2024, section 3 (arXiv:2412.06464); parameters as in Qwen3-Next, with its two fused projections apart.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: GatedDeltaConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        self.wq, self.wk = Linear(d_model, config.d_keys), Linear(d_model, config.d_keys)
        self.wv, self.wz = Linear(d_model, config.d_values), Linear(d_model, config.d_values)
        self.wa, self.wb = Linear(d_model, config.num_heads), Linear(d_model, config.num_heads)
        self.conv = ShortConvolution(2 * config.d_keys + config.d_values, config.conv_kernel)
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.norm = GatedNorm(config.d_value, norm_eps)
        self.wo = Linear(config.d_values, d_model)
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        """Of this module's own parameters."""
        self.reset_rates(generator)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        config, real = self.config, real_tokens(layout)
        state = empty_state(x, config.num_heads, config.d_key, config.d_value)
        before, state = cache.state(self.conv.empty_state(x), state)
        mixed = torch.cat([self.wq(x), self.wk(x), self.wv(x)], -1)
        mixed, before = self.conv(mixed, before, layout)
        q, k, v = mixed.split([config.d_keys, config.d_keys, config.d_values], -1)
        q, k = (_unit(y.unflatten(-1, (-1, config.d_key))) for y in (q, k))
        y, state = kernels.gated_delta(
            q * config.d_key**-0.5,
            silenced(k, real),
            silenced(v, real).unflatten(-1, (-1, config.d_value)),
            self.log_decay(silenced(self.steps(self.wa(x)), real)),
            silenced(_at_least_float32(self.wb(x)).sigmoid(), real),
            state,
            first_tokens(layout),
        )
        cache.keep(layout.positions, before, state)
        z = self.wz(x).unflatten(-1, (-1, config.d_value))
        return self.wo(self.norm(y, z).flatten(2))


def _unit(x: Float[Tensor, "batch seq heads d_key"]) -> Float[Tensor, "batch seq heads d_key"]:
    work = _at_least_float32(x)
    return work * (work.square().sum(-1, keepdim=True) + L2_EPS).rsqrt()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
