"""Making a rotary embedding reach further than it was trained: four ways of slowing its pairs down.

Pair i of d channels turns by f_i = theta^(-2i/d) radians per token, and makes one turn in 2 pi / f_i tokens. Beyond
the trained length, pairs that never finished a turn meet angles that the model has not seen.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

Frequencies = Float[Tensor, " pairs"]


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every pair `factor` times slower. Chen et al. 2023 (arXiv:2306.15595)."""

    factor: float
    amplitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def scale(self, frequencies: Frequencies, theta: float) -> Frequencies:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTKScaling:
    """A larger base, theta * factor^(d / (d - 2)): the fastest pair stays, the slowest is `factor` times slower.

    "NTK-aware" scaling, as described by Peng et al. 2023, section 3.1 (arXiv:2309.00071).
    """

    factor: float
    amplitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def scale(self, frequencies: Frequencies, theta: float) -> Frequencies:
        pairs = len(frequencies)
        shares = torch.arange(pairs, device=frequencies.device) / max(pairs - 1, 1)
        return frequencies * self.factor**-shares


@dataclass(frozen=True)
class Llama3Scaling:
    """Pairs that turn often within the trained length stay, seldom ones are slowed, between them a blend.

    With r = original_context * f / (2 pi) turns in the trained length: r >= high_turns stays, r <= low_turns becomes
    f / factor. Llama 3.1's model card and code; config.json calls the bounds low_freq_factor and high_freq_factor.
    """

    factor: float = 8.0
    low_turns: float = 1.0
    high_turns: float = 4.0
    original_context: int = 8192
    amplitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_context)
        if not 0 < self.low_turns < self.high_turns:
            raise ValueError(f"rotary scaling: low_turns={self.low_turns} must be below high_turns={self.high_turns}")

    def scale(self, frequencies: Frequencies, theta: float) -> Frequencies:
        turns = self.original_context * frequencies / (2 * math.pi)
        kept = ((turns - self.low_turns) / (self.high_turns - self.low_turns)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: the blend is linear in the pair's number, and scores are sharpened by a larger amplitude.

    Pairs with more than `fast_turns` turns in the trained length stay, those with fewer than `slow_turns` become
    f / factor. Cosines and sines are multiplied by `amplitude`, 0.1 ln(factor) + 1 unless given.

    Peng et al. 2023, section 3.2 and eq. 21 (arXiv:2309.00071); the bounds are rounded outwards to whole pairs, as in
    the authors' code. config.json calls them beta_fast and beta_slow.
    """

    factor: float
    original_context: int
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    given_amplitude: float | None = None
    rounded: bool = True

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_context)
        if not 0 < self.slow_turns < self.fast_turns:
            raise ValueError(f"rotary scaling: slow_turns={self.slow_turns} must be below fast_turns={self.fast_turns}")

    @property
    def amplitude(self) -> float:
        return yarn_amplitude(self.factor) if self.given_amplitude is None else self.given_amplitude

    def scale(self, frequencies: Frequencies, theta: float) -> Frequencies:
        last = 2 * len(frequencies) - 1
        low, high = (self._pair(turns, theta, len(frequencies)) for turns in (self.fast_turns, self.slow_turns))
        if self.rounded:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, last)
        high = high + 0.001 if low == high else high
        slowed = ((torch.arange(len(frequencies), device=frequencies.device) - low) / (high - low)).clamp(0, 1)
        return frequencies * (1 - slowed + slowed / self.factor)

    def _pair(self, turns: float, theta: float, pairs: int) -> float:
        """The (fractional) number of the pair that makes so many turns in the trained length."""
        return pairs * math.log(self.original_context / (turns * 2 * math.pi)) / math.log(theta)


def yarn_amplitude(factor: float, weight: float = 1.0) -> float:
    """0.1 weight ln(factor) + 1 for a factor above 1. DeepSeek divides two of them, with weights of its own."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


RopeScaling = LinearScaling | NTKScaling | Llama3Scaling | YarnScaling


def _check_factor(factor: float) -> None:
    if not 0 < factor < math.inf:
        raise ValueError(f"rotary scaling: factor={factor}; expected a positive number, such as 4")


def _check_context(original_context: int) -> None:
    if original_context < 1:
        raise ValueError(f"rotary scaling: original_context={original_context}; expected the trained length in tokens")
