"""How a model knows the order of its tokens: rotary, learned, sinusoidal or not at all."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup import kernels
from groundup.model.hard_choice import Choice
from groundup.model.linear import truncated_normal_
from groundup.model.rope_scaling import RopeScaling, YarnScaling


@dataclass(frozen=True)
class Rope:
    """Rotary embedding inside attention; the slowest pair turns once in 2 pi * theta tokens or so.

    `fraction` is the share of each head's channels that turn, the first ones (GPT-NeoX 0.25).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not 0 < self.theta < float("inf"):
            raise ValueError(f"rotary embedding: theta={self.theta}; expected a positive number, such as 10000")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rotary embedding: fraction={self.fraction}; expected a share of channels, up to 1")
        if isinstance(self.scaling, YarnScaling) and self.theta <= 1:
            raise ValueError(f"rotary embedding: theta={self.theta}; YaRN needs one above 1, such as 10000")

    def check(self, channels: int, name: str, remedy: str = "") -> None:
        """ValueError unless the channels that turn make pairs; `name` is what to call their number."""
        turned = int(channels * self.fraction)
        if turned % 2 or turned == 0:
            share = "" if self.fraction == 1 else f" times fraction={self.fraction}"
            turning = {n: int(n * self.fraction) for n in range(2, 2 * channels + 40)}
            fitting = [n for n, turns in turning.items() if turns and turns % 2 == 0]
            nearest = sorted(sorted(fitting, key=lambda n: abs(n - channels))[:2])
            use = " or ".join(map(str, nearest)) or "a larger fraction"
            raise ValueError(
                f"{name}={channels}{share} is {'odd' if turned else 'nothing'}, and a rotary embedding turns "
                f"channels in pairs; use {use}{',' if remedy else ''}{remedy}"
            )

    def tables(self, positions: Int[Tensor, "batch seq"], channels: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) of every token's angles for heads of so many channels, as from `kernels.rope_tables`."""
        frequencies = kernels.rope_frequencies(int(channels * self.fraction), self.theta, positions.device)
        if self.scaling is None:
            return kernels.rope_tables(positions, frequencies)
        cos, sin = kernels.rope_tables(positions, self.scaling.scale(frequencies, self.theta))
        return cos * self.scaling.amplitude, sin * self.scaling.amplitude


@dataclass(frozen=True)
class LearnedPositions:
    """A trained vector per position, added to the token embedding (GPT-2)."""

    max_length: int

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"learned positions: max_length={self.max_length}; expected at least 1")


@dataclass(frozen=True)
class SinusoidalPositions:
    """Fixed sines and cosines, added to the token embedding (Transformer, 2017)."""

    max_length: int


@dataclass(frozen=True)
class Layout:
    """Where every token of a batch sits, computed once per forward pass and handed to every layer.

    `causal_from_zero` promises positions 0, 1, 2, ... in every row and nothing remembered from before.
    `tables` holds the (cos, sin) of each rotary embedding in use, by (rope, d_head). `auxiliary` takes what layers
    add to the loss of a training step (each a scalar, its coefficient included); None when nobody asks. `choices` takes
    what layers sampled, for an objective that knows what it cost. `tokens` are the ids, for layers that look at them
    (hash routing).
    """

    positions: Int[Tensor, "batch seq"]
    segments: Int[Tensor, "batch seq"] | None = None
    causal_from_zero: bool = False
    tables: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    auxiliary: list[Tensor] | None = None
    choices: list[Choice] | None = None
    tokens: Int[Tensor, "batch seq"] | None = None

    def rotate(
        self, x: Float[Tensor, "batch seq heads d_head"], rope: Rope | None
    ) -> Float[Tensor, "batch seq heads d_head"]:
        """x turned by its tokens' positions; unchanged without a rotary embedding."""
        if rope is None:
            return x
        cos, sin = self.tables[rope, x.shape[-1]]
        turned = 2 * cos.shape[-1]
        if turned == x.shape[-1]:
            return kernels.rotate(x, cos, sin)
        return torch.cat([kernels.rotate(x[..., :turned], cos, sin), x[..., turned:]], -1)


def rotary_tables(
    positions: Int[Tensor, "batch seq"], keys: Iterable[tuple[Rope, int]]
) -> dict[tuple[Rope, int], tuple[Tensor, Tensor]]:
    """`Layout.tables` for these (rope, d_head). One row of positions serves a batch that shares it."""
    return {(rope, channels): rope.tables(positions, channels) for rope, channels in keys}


def sinusoids(positions: Int[Tensor, "*batch"], d_model: int) -> Float[Tensor, "*batch d_model"]:
    r"""Channel 2i is sin(p / 10000^(2i/d)), channel 2i+1 the cosine, in float32.

    Vaswani et al. 2017, section 3.5 (arXiv:1706.03762), with sines and cosines interleaved as there.
    """
    frequencies = kernels.rope_frequencies(d_model, 10_000.0, positions.device)
    angles = positions[..., None].float() * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :d_model]


class PositionTable(nn.Module):
    """The learned vectors of `LearnedPositions`."""

    def __init__(self, max_length: int, d_model: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(max_length, d_model))
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        truncated_normal_(self.weight, scale * self.std, generator)

    def forward(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        # Padding sits at -1; its vector is never read by anyone.
        return F.embedding(positions.clamp(min=0), self.weight)
