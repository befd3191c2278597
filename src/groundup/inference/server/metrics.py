"""Counters and histograms in Prometheus' text format. Labels come from fixed sets: their number cannot grow."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

ENDPOINTS = ("completions", "chat")
OUTCOMES = ("completed", "invalid", "rejected", "failed", "cancelled")
"""Answered; a mistake of the client; refused for want of room; an error here; the client went away."""
PATHS = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

ENGINE_GAUGES = {
    "waiting": "requests that wait in the engine",
    "running": "requests in the batch",
    "pages_total": "pages of the KV cache",
    "pages_used": "pages that running requests hold",
    "pages_cached": "pages kept for prompts that begin the same",
}
ENGINE_COUNTERS = {
    "prompt_tokens": "tokens of prompts",
    "cached_prompt_tokens": "tokens of prompts that the prefix cache had",
    "generated_tokens": "tokens generated",
    "preemptions": "requests put back to free pages",
    "steps": "forward passes",
    "requests_submitted": "answers that were asked of the engine: several for one request with n or a list of prompts",
}
REASONS = ("end", "stop", "length", "abort", "error")


class Histogram:
    """Counts of observations up to each bound, their sum, and the last few for medians."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0
        self.recent: list[float] = []

    def observe(self, value: float) -> None:
        """Note one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.recent = [*self.recent[-63:], value]

    @property
    def median(self) -> float | None:
        """Of the last 64."""
        return sorted(self.recent)[len(self.recent) // 2] if self.recent else None

    def lines(self, name: str) -> Iterator[str]:
        """The samples of the exposition format."""
        so_far = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            so_far += count
            yield f'{name}_bucket{{le="{bound}"}} {so_far}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {so_far}"


class Metrics:
    """What the server counts itself; the engine's own figures are read when they are asked for."""

    def __init__(self) -> None:
        self.requests = {(endpoint, outcome): 0 for endpoint in ENDPOINTS for outcome in OUTCOMES}
        self.first_token, self.per_token = Histogram(SECONDS), Histogram(TOKEN_SECONDS)
        self.request = Histogram(SECONDS)

    def count(self, endpoint: str, outcome: str) -> None:
        """One request more that ended so."""
        self.requests[endpoint, outcome] += 1

    def count_refusal(self, method: str, path: str, status: int) -> None:
        """One request that did not get as far as its endpoint; nothing where the path is that of none."""
        if method == "POST" and path in PATHS:
            self.count(PATHS[path], outcome_of(status))

    def render(self, service: Any) -> str:
        """The text of /metrics."""
        return "\n".join([*self._own(), *_of_service(service), ""])

    def _own(self) -> Iterator[str]:
        yield from _head("groundup_requests_total", "counter", "requests by how they ended")
        for (endpoint, outcome), count in self.requests.items():
            yield f'groundup_requests_total{{endpoint="{endpoint}",outcome="{outcome}"}} {count}'
        for name, meaning, histogram in (
            ("time_to_first_token", "from admission to the first token", self.first_token),
            ("time_per_output_token", "between tokens after the first", self.per_token),
            ("request", "from admission to the last token", self.request),
        ):
            yield from _head(f"groundup_{name}_seconds", "histogram", meaning)
            yield from histogram.lines(f"groundup_{name}_seconds")


def outcome_of(status: int) -> str:
    """What an error with this status counts as."""
    if status in (429, 503):
        return "rejected"
    return "invalid" if status < 500 else "failed"


def _of_service(service: Any) -> Iterator[str]:
    stats = service.stats()
    yield from _sample("groundup_queue", "gauge", "requests without a first token", service.waiting)
    yield from _sample("groundup_open_requests", "gauge", "requests not yet ended", service.open_streams)
    rate = round(service.tokens_per_second(), 3)
    yield from _sample("groundup_tokens_per_second", "gauge", "tokens generated, over ten seconds", rate)
    for name, meaning in ENGINE_GAUGES.items():
        yield from _sample(f"groundup_engine_{name}", "gauge", meaning, getattr(stats, name))
    for name, meaning in ENGINE_COUNTERS.items():
        yield from _sample(f"groundup_{name}_total", "counter", meaning, getattr(stats, name))
    yield from _head("groundup_requests_ended_total", "counter", "answers of the engine by how they ended")
    for reason in REASONS:
        yield f'groundup_requests_ended_total{{reason="{reason}"}} {stats.requests_ended.get(reason, 0)}'


def _sample(name: str, kind: str, meaning: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, meaning)
    yield f"{name} {value}"


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
