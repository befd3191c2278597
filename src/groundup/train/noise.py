"""The gradient noise scale: the batch size beyond which more examples stop buying fewer steps."""

from dataclasses import dataclass
from typing import Any


class NoiseScale:
    r"""B_simple = tr(Sigma) / |G|^2 in units of loss weight (tokens), from two batch sizes of each step.

    A gradient over B tokens has E|G_B|^2 = |G|^2 + tr(Sigma) / B. A micro-batch and the whole batch give two
    equations; their solutions are noisy and biased as a ratio, so each is averaged over steps on its own.

    McCandlish et al. 2018 (arXiv:1812.06162), appendix A.1. Below B_simple, doubling the batch about halves
    the steps needed; above it, it is mostly wasted.
    """

    def __init__(self, decay: float = 0.95):
        self.decay = decay
        self.signal = self.noise = 0.0

    def observe(self, small_square: float, small_size: float, big_square: float, big_size: float) -> None:
        """Squared gradient norms at two batch sizes. Nothing is learned from equal sizes."""
        if not 0 < small_size < big_size:
            return
        signal = (big_size * big_square - small_size * small_square) / (big_size - small_size)
        noise = (small_square - big_square) / (1 / small_size - 1 / big_size)
        self.signal = self.decay * self.signal + (1 - self.decay) * signal
        self.noise = self.decay * self.noise + (1 - self.decay) * noise

    @property
    def tokens(self) -> float | None:
        """The estimate; None before there is one, or while the averages are too noisy to be positive."""
        return self.noise / self.signal if self.signal > 0 and self.noise > 0 else None

    def state(self) -> dict[str, Any]:
        return {"signal": self.signal, "noise": self.noise}

    def load_state(self, state: dict[str, Any]) -> None:
        self.signal, self.noise = state["signal"], state["noise"]


@dataclass(frozen=True)
class BatchAdvice:
    """A batch beside the critical one, all relative to the least that any batch could do.

    steps: 1 + critical / batch, times the steps of an endless batch
    tokens: 1 + batch / critical, times the tokens of a tiny batch
    """

    batch_tokens: float
    critical_tokens: float
    steps: float
    tokens: float

    def __str__(self) -> str:
        share = self.batch_tokens / self.critical_tokens
        fewer = 1 - (1 + 0.5 / share) / self.steps
        more = (1 + 2 * share) / self.tokens - 1
        return (
            f"a batch of {self.batch_tokens:,.0f} tokens is {share:.2g} of the critical {self.critical_tokens:,.0f}: "
            f"twice as large would take {fewer:.0%} fewer steps and {more:.0%} more tokens to the same loss"
        )


def batch_advice(batch_tokens: float, noise_scale: float) -> BatchAdvice:
    """What a batch costs beside the critical batch, which is the noise scale.

    To a given loss S / S_min = 1 + B_noise / B steps and E / E_min = 1 + B / B_noise tokens are needed; at the critical
    batch both are 2. It grows while the loss falls, so early estimates are low. McCandlish et al. 2018, eq. 2.7 and 2.8
    (arXiv:1812.06162).
    """
    if not (batch_tokens > 0 and noise_scale > 0):
        raise ValueError(f"batch_tokens={batch_tokens}, noise_scale={noise_scale}: expected numbers above 0")
    return BatchAdvice(batch_tokens, noise_scale, 1 + noise_scale / batch_tokens, 1 + batch_tokens / noise_scale)
