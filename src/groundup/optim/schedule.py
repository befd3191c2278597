"""Learning-rate schedules: step number -> multiplier of the base rate."""

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, a plateau at 1, then decay to `final` between steps `decay_start` and `total`.

    Step s (from 0) warms up as (s + 1) / warmup, so the first step does move. The last step taken,
    total - 1, is still one decay step above `final`: no step is spent at rate zero.
    """

    warmup: int
    decay_start: int
    total: int
    shape: Literal["constant", "linear", "cosine"]
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0.0 <= self.final <= 1.0:
            raise ValueError(f"schedule warmup={self.warmup}, final={self.final}: expected >= 0 and in [0, 1]")
        if self.shape != "constant" and not self.warmup <= self.decay_start <= self.total:
            raise ValueError(
                f"schedule of {self.total} steps: warm-up to {self.warmup} and decay from {self.decay_start} overlap"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.shape == "constant" or step < self.decay_start:
            return 1.0
        left = 1.0 - min(1.0, (step - self.decay_start) / max(1, self.total - self.decay_start))
        height = left if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
        return self.final + (1.0 - self.final) * height


def warmup_stable_decay(warmup: int, total: int, decay_fraction: float = 0.2, final: float = 0.0) -> Schedule:
    """Plateau, then linear decay over the last `decay_fraction` of all steps (WSD).

    Any checkpoint on the plateau can branch: resume it under a schedule with a nearer `total`.
    Hu et al. 2024 (arXiv:2404.06395); linear to zero: Hägele et al. 2024 (arXiv:2405.18392).
    """
    if not 0.0 <= decay_fraction <= 1.0:
        raise ValueError(f"decay_fraction={decay_fraction}: expected a number in [0, 1]")
    return Schedule(warmup, max(warmup, total - round(total * decay_fraction)), total, "linear", final)


def cosine(warmup: int, total: int, final: float = 0.0) -> Schedule:
    """Half a cosine from 1 to `final`. Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts."""
    return Schedule(warmup, warmup, total, "cosine", final)


def linear(warmup: int, total: int, final: float = 0.0) -> Schedule:
    """A straight line from 1 to `final`, the best simple choice when `total` is known."""
    return Schedule(warmup, warmup, total, "linear", final)


def constant(warmup: int = 0) -> Schedule:
    return Schedule(warmup, warmup, warmup, "constant", 1.0)


def cooldown(plateau: Schedule, at: int, steps: int, shape: Literal["linear", "cosine"] = "linear") -> Schedule:
    """The schedule of a branch that leaves the plateau after `at` steps and decays over the next `steps`.

    It is what the trunk would have followed, had this end been known: equal to `plateau` up to step `at`. ValueError
    where `at` is not on the plateau, as then some of the trunk's rates would have been others.
    """
    if steps < 1:
        raise ValueError(f"cooldown of {steps} steps: expected at least 1")
    ends = None if plateau.shape == "constant" else plateau.decay_start
    if at < plateau.warmup or (ends is not None and at > ends):
        until = "on" if ends is None else f"to {ends}"
        raise ValueError(
            f"cooldown after {at} steps: the plateau goes from step {plateau.warmup} {until}; branch there"
        )
    return Schedule(plateau.warmup, at, at + steps, shape, 0.0 if ends is None else plateau.final)


@dataclass(frozen=True)
class InverseSqrt:
    """Linear warm-up, then sqrt(warmup / step): no total to be known, and no plateau either.

    min((s + 1) / w, sqrt(w / (s + 1))) is the first Transformer's schedule over its own peak, (d_model * w)^-1/2.
    Vaswani et al. 2017, eq. 3 (arXiv:1706.03762).
    """

    warmup: int

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError(f"InverseSqrt warmup={self.warmup}: expected at least 1, where its decay begins")

    def __call__(self, step: int) -> float:
        return min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


@dataclass(frozen=True)
class OneCycle:
    """Half a cosine from `start` up to 1 over `rise` of all steps, and one down to `final`: warm-up as long as it can
    be.

    Its high rates regularise; it was made for few passes at a rate near the edge. Of the rate only: the paper also
    lowers momentum at the peak. Smith & Topin 2018 (arXiv:1708.07120), with cosines for straight lines as in torch.
    """

    total: int
    rise: float = 0.3
    start: float = 1 / 25
    final: float = 1 / 250_000

    def __post_init__(self) -> None:
        if self.total < 2 or not 0.0 < self.rise < 1.0 or not (0.0 <= self.start <= 1.0 and 0.0 <= self.final <= 1.0):
            raise ValueError(f"{self}: expected total >= 2, rise in (0, 1), start and final in [0, 1]")

    def __call__(self, step: int) -> float:
        peak, last = self.rise * self.total - 1, self.total - 1
        if step <= peak:
            return _between(self.start, 1.0, step / peak)
        return _between(1.0, self.final, min(1.0, (step - peak) / (last - peak)))


def _between(a: float, b: float, share: float) -> float:
    """Half a cosine from a to b."""
    return b + (a - b) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class BatchRamp:
    """Batches per step that grow from `first` to `last` over `steps`: `train(..., batches_per_step=BatchRamp(1, 8,
    1000))`.

    The noise scale grows as the loss falls, so a batch that is right at the end wastes tokens at the beginning. A
    straight line in steps, rounded down, as GPT-3's is in tokens (Brown et al. 2020, appendix B, arXiv:2005.14165).
    The rate stays as scheduled.
    """

    first: int
    last: int
    steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last or self.steps < 1:
            raise ValueError(f"{self}: expected 1 <= first <= last, and steps of at least 1")

    def __call__(self, step: int) -> int:
        return self.first + min(step, self.steps) * (self.last - self.first) // self.steps


class ClockDecay:
    """Warm-up and plateau, until the clock says that decay must begin to end at the deadline.

    The plateau ends when the time left is what a decay of `decay_fraction` of all steps needs. From then on
    each step lowers the multiplier by (multiplier - final) / steps left, with steps left estimated anew from
    the clock: a straight line when steps take equal time, and still on time when they do not.

    The multiplier is state, not a function of the step number: save `state()` with the weights.
    """

    def __init__(self, warmup: int, decay_fraction: float = 0.2, final: float = 0.0):
        if warmup < 0 or not 0.0 < decay_fraction < 1.0 or not 0.0 <= final <= 1.0:
            raise ValueError(
                f"ClockDecay warmup={warmup}, decay_fraction={decay_fraction}, final={final}: "
                "expected warmup >= 0, a fraction in (0, 1) and final in [0, 1]"
            )
        self.warmup, self.decay_fraction, self.final = warmup, decay_fraction, final
        self.decay_start: int | None = None
        self.multiplier = 1.0

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) * self.multiplier if step < self.warmup else self.multiplier

    def observe(self, step: int, seconds_left: float, seconds_per_step: float) -> None:
        """Called before step number `step` with the time left to the deadline and a recent step time."""
        steps_left = seconds_left / max(seconds_per_step, 1e-9)
        if self.decay_start is None:
            # A decay of d steps after s steps is the wanted fraction f of s + d when d = s f / (1 - f).
            if steps_left > max(1.0, step * self.decay_fraction / (1.0 - self.decay_fraction)):
                return
            self.decay_start = step
            return
        self.multiplier -= (self.multiplier - self.final) / max(1.0, steps_left + 1.0)

    def state(self) -> dict[str, Any]:
        return {"decay_start": self.decay_start, "multiplier": self.multiplier}

    def load_state(self, state: dict[str, Any]) -> None:
        self.decay_start, self.multiplier = state["decay_start"], float(state["multiplier"])
