"""What serving costs and how long users wait, counted as it happens.

Time to first token is from submission to the first token, so it holds the wait in the queue. Time per output token
is the mean gap between the tokens after the first one. Rates are over the last ten seconds.
"""

import time
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 10.0
FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PER_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
OUTCOMES = ("end", "stop", "length", "abort", "error")


class Histogram:
    """Counts of values up to each bound, and their sum: what Prometheus computes quantiles from.

    >>> h = Histogram((0.1, 1.0)); [h.add(x) for x in (0.05, 0.5, 7.0)] and (h.counts, h.total, h.sum)
    ([1, 1, 1], 3, 7.55)
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total, self.sum = 0, 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += 1
        self.sum += value

    def quantile(self, share: float) -> float | None:
        """The upper bound of the bucket that holds this quantile; None without values, the last bound beyond it."""
        if not self.total:
            return None
        seen = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= share * self.total:
                return bound
        return self.bounds[-1]


@dataclass
class _Timing:
    began: float
    first: float | None = None
    last: float = 0.0
    tokens: int = 0


@dataclass
class Measures:
    """Written by the engine's thread, read by any: single numbers, so a reader is at most one step behind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    tokens: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    per_token: Histogram = field(default_factory=lambda: Histogram(PER_TOKEN_SECONDS))
    _timings: dict[int, _Timing] = field(default_factory=dict)
    _recent_tokens: deque[tuple[float, int]] = field(default_factory=deque)
    _recent_jobs: deque[tuple[float, int]] = field(default_factory=deque)

    def began(self, request: int) -> None:
        """A request was submitted."""
        self._timings[request] = _Timing(time.monotonic())

    def got(self, request: int, tokens: int) -> None:
        """A step brought a request this many tokens."""
        if not tokens:
            return
        now, timing = time.monotonic(), self._timings[request]
        if timing.first is None:
            timing.first = now
            self.first_token.add(now - timing.began)
        timing.last, timing.tokens = now, timing.tokens + tokens
        self.tokens += tokens
        _note(self._recent_tokens, now, tokens)

    def ended(self, request: int, reason: str | None) -> None:
        """A request ended for this reason."""
        timing = self._timings.pop(request)
        self.outcomes[reason if reason in OUTCOMES else "error"] += 1
        _note(self._recent_jobs, time.monotonic(), 1)
        if timing.first is not None and timing.tokens > 1:
            self.per_token.add((timing.last - timing.first) / (timing.tokens - 1))

    def tokens_per_second(self) -> float:
        """Generated tokens, over the window."""
        return _rate(self._recent_tokens)

    def jobs_per_second(self) -> float:
        """Ended requests, over the window."""
        return _rate(self._recent_jobs)


def _note(recent: deque[tuple[float, int]], now: float, count: int) -> None:
    """Count into the newest tenth of a second: the window has at most about a hundred entries."""
    if recent and now - recent[-1][0] < 0.1:
        recent[-1] = recent[-1][0], recent[-1][1] + count
    else:
        recent.append((now, count))
    while recent and now - recent[0][0] > WINDOW_SECONDS:
        recent.popleft()


def _rate(recent: deque[tuple[float, int]]) -> float:
    now = time.monotonic()
    inside = [(when, count) for when, count in tuple(recent) if now - when <= WINDOW_SECONDS]
    if not inside:
        return 0.0
    return sum(count for _, count in inside) / max(1.0, min(WINDOW_SECONDS, now - inside[0][0]))
