"""What recurrent mixers share: which tokens start afresh, which are padding, the short convolution, gated norms."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from groundup import kernels
from groundup.model.linear import truncated_normal_
from groundup.model.position import Layout

LEAST_STEP, MOST_STEP = 1e-3, 0.1
"""Between these, on a logarithmic scale, are the steps dt with which heads begin."""

LEAST_RATE, MOST_RATE = 1.0, 16.0
"""Between these are the rates A with which heads begin; a step decays the state by exp(-dt A)."""


def check_sizes(where: str, config: Any, *names: str) -> None:
    """ValueError for the first of these fields that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{where}: {name}={getattr(config, name)}; expected at least 1")


def check_divides(where: str, config: Any, part: str, whole: str, why: str) -> None:
    """ValueError unless field `part` divides field `whole`, with the sizes that do."""
    n, wanted = getattr(config, whole), getattr(config, part)
    if n % wanted:
        allowed = [i for i in range(1, n + 1) if n % i == 0]
        closest = min(allowed, key=lambda i: abs(i - wanted))
        raise ValueError(
            f"{where}: {part}={wanted} does not divide {whole}={n}, and {why}; "
            f"allowed are {', '.join(map(str, allowed))} (nearest: {closest})"
        )


def first_tokens(layout: Layout) -> Bool[Tensor, "batch seq"] | None:
    """Where another document begins than the one before in its row: there a state starts from zeros."""
    segments = layout.segments
    if segments is None:
        return None
    return segments != torch.cat([segments[:, :1], segments[:, :-1]], 1)


def real_tokens(layout: Layout) -> Bool[Tensor, "batch seq"] | None:
    """Which tokens are not padding; None where all are known to be real."""
    return None if layout.causal_from_zero else layout.positions >= 0


def silenced(
    x: Float[Tensor, "batch seq *channels"], real: Bool[Tensor, "batch seq"] | None
) -> Float[Tensor, "batch seq *channels"]:
    """x with zeros in place of padding, whatever was there: a product would keep a NaN."""
    if real is None:
        return x
    return x.masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 2)), 0.0)


def empty_state(x: Tensor, *shape: int) -> Tensor:
    """What `Cache.state` is asked for: one state of this shape per row of x, in float32 at least."""
    return x.new_empty((x.shape[0], *shape), dtype=torch.promote_types(x.dtype, torch.float32))


def last_inputs(
    x: Float[Tensor, "batch seq d"], before: Float[Tensor, "batch earlier d"], real: Bool[Tensor, "batch seq"] | None
) -> Float[Tensor, "batch earlier d"]:
    """The last inputs of each row that are not padding, as many as `before` holds from earlier calls.

    Padding may stand on either side of a row's tokens, not between them.
    """
    earlier, inputs = before.shape[1], torch.cat([before, x], 1)
    if real is None:
        return inputs[:, x.shape[1] :].clone()
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    behind_last = (places * real).amax(1)  # 0 in a row of padding, whose inputs stay those of before
    at = behind_last[:, None] + torch.arange(earlier, device=x.device)
    return inputs.gather(1, at[..., None].expand(-1, -1, x.shape[2]))


class ShortConvolution(nn.Module):
    """silu of a causal convolution in each channel over its last `kernel` tokens; see `kernels.causal_convolution`.

    Weights are (channels, 1, kernel), as in torch.nn.Conv1d.
    """

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        truncated_normal_(self.weight, self.weight.shape[-1] ** -0.5, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def empty_state(self, x: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch earlier channels"]:
        """What `Cache.state` is asked for: the kernel - 1 inputs before the first."""
        channels, _, kernel = self.weight.shape
        return x.new_empty(x.shape[0], kernel - 1, channels)

    def forward(
        self, x: Float[Tensor, "batch seq channels"], before: Float[Tensor, "batch earlier channels"], layout: Layout
    ) -> tuple[Float[Tensor, "batch seq channels"], Float[Tensor, "batch earlier channels"]]:
        """The outputs, and the last kernel - 1 inputs of each row that are not padding.

        Padding may stand on either side of a row's tokens, not between them.
        """
        real = real_tokens(layout)
        x = silenced(x, real)  # on the left it is then the zeros before a beginning
        y = kernels.causal_convolution(x, self.weight[:, 0], self.bias, before, first_tokens(layout))
        return kernels.activate(y, "silu"), last_inputs(x, before, real)


class GatedNorm(nn.Module):
    """RMSNorm within each group of channels, and a silu gate before it (Mamba-2) or after it."""

    def __init__(self, d: int, eps: float, groups: int = 1, gate_first: bool = False) -> None:
        super().__init__()
        self.eps, self.groups, self.gate_first = eps, groups, gate_first
        self.weight = nn.Parameter(torch.ones(d))

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch d"], gate: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        if self.gate_first:
            return self._norm(kernels.gated(gate, x, "silu"))
        return kernels.gated(gate, self._norm(x), "silu")

    def _norm(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return kernels.rmsnorm(x, self.weight, self.eps)
        grouped = x.unflatten(-1, (self.groups, -1))
        plain = kernels.rmsnorm(grouped, torch.ones_like(self.weight[: grouped.shape[-1]]), self.eps)
        return (plain.flatten(-2) * self.weight).to(x.dtype)


class Rates(nn.Module):
    """How fast heads forget: log decay = -exp(A_log) softplus(x + dt_bias), a mixin for modules with these two.

    Heads begin at decays from exp(-1e-3) to exp(-1.6) per token. Dao & Gu 2024 (arXiv:2405.21060).
    """

    A_log: nn.Parameter
    dt_bias: nn.Parameter

    def reset_rates(self, generator: torch.Generator | None) -> None:
        if self.A_log.is_meta:
            return
        heads = self.A_log.shape[0]
        rate = LEAST_RATE + (MOST_RATE - LEAST_RATE) * torch.rand(heads, generator=generator, device="cpu")
        step = LEAST_STEP * (MOST_STEP / LEAST_STEP) ** torch.rand(heads, generator=generator, device="cpu")
        with torch.no_grad():
            self.A_log.copy_(rate.log())
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def steps(self, x: Float[Tensor, "batch seq heads"]) -> Float[Tensor, "batch seq heads"]:
        """dt, in float32 at least."""
        x = x if x.dtype == torch.float64 else x.float()
        return nn.functional.softplus(x + self.dt_bias)

    def log_decay(self, steps: Float[Tensor, "batch seq heads"]) -> Float[Tensor, "batch seq heads"]:
        """The logarithm of each head's decay over a step."""
        return -self.A_log.exp() * steps
