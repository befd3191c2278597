"""The counters of a server in Prometheus' text format. No label has a value that a client could choose."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from groundup.inference.measures import OUTCOMES, Histogram
from groundup.inference.service import Service

PATHS = ("/", "/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics", "/stats", "/explorer")


class Responses:
    """Answers by path and status; whatever is no path of ours counts as "other"."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()

    def add(self, path: str, status: int) -> None:
        """Count one answer."""
        self.counts[path if path in PATHS else "other", status] += 1


def prometheus(service: Service, responses: Responses) -> str:
    """The page that /metrics shows."""
    stats, measures = service.stats(), service.measures
    lines = [
        *_metric("queue_requests", "gauge", "Requests that wait for a place in the batch", stats.waiting),
        *_metric("batch_requests", "gauge", "Requests that run", stats.running),
        *_metric("open_jobs", "gauge", "Accepted and not ended", service.open_jobs),
        *_metric("kv_pages", "gauge", "Pages of the KV cache", stats.pages_total),
        *_metric("kv_pages_used", "gauge", "Pages that requests hold", stats.pages_used),
        *_metric("kv_pages_cached", "gauge", "Free pages that are kept for prompts that begin alike", stats.pages_cached),
        *_metric("prompt_tokens_total", "counter", "Tokens of prompts", stats.prompt_tokens),
        *_metric("cached_prompt_tokens_total", "counter", "Of these, found in the cache", stats.cached_prompt_tokens),
        *_metric("generated_tokens_total", "counter", "Tokens of answers", stats.generated_tokens),
        *_metric("tokens_per_second", "gauge", "Of answers, over ten seconds", round(measures.tokens_per_second(), 3)),
        *_metric("preemptions_total", "counter", "Requests put back for want of pages", stats.preemptions),
        *_metric("steps_total", "counter", "Forward passes", stats.steps),
        *_metric("refused_total", "counter", "Requests refused because the queue was full", measures.refused),
        *_metric("healthy", "gauge", "1 while the engine works", int(service.healthy)),
        "# HELP groundup_requests_total Requests by how they ended",
        "# TYPE groundup_requests_total counter",
        *(f'groundup_requests_total{{outcome="{name}"}} {measures.outcomes[name]}' for name in OUTCOMES),
        *_histogram("time_to_first_token_seconds", "From submission to the first token", measures.first_token),
        *_histogram("time_per_output_token_seconds", "Mean gap between tokens of an answer", measures.per_token),
        "# HELP groundup_http_responses_total Answers by path and status",
        "# TYPE groundup_http_responses_total counter",
        *(
            f'groundup_http_responses_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(responses.counts.copy().items())
        ),
    ]
    return "\n".join(lines) + "\n"


def as_json(service: Service) -> dict[str, Any]:
    """The same for the page: what is shown live."""
    stats, measures = service.stats(), service.measures
    return {
        "waiting": stats.waiting,
        "running": stats.running,
        "max_waiting": service.max_waiting,
        "batch_size": service.engine.batch_size,
        "pages_total": stats.pages_total,
        "pages_used": stats.pages_used,
        "pages_cached": stats.pages_cached,
        "prompt_tokens": stats.prompt_tokens,
        "cached_prompt_tokens": stats.cached_prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "tokens_per_second": measures.tokens_per_second(),
        "first_token_seconds": {"p50": measures.first_token.quantile(0.5), "p99": measures.first_token.quantile(0.99)},
        "per_token_seconds": {"p50": measures.per_token.quantile(0.5), "p99": measures.per_token.quantile(0.99)},
        "outcomes": dict(measures.outcomes),
        "refused": measures.refused,
        "healthy": service.healthy,
        "draining": service.draining,
    }


def _metric(name: str, kind: str, meaning: str, value: float) -> Iterable[str]:
    return f"# HELP groundup_{name} {meaning}", f"# TYPE groundup_{name} {kind}", f"groundup_{name} {value}"


def _histogram(name: str, meaning: str, histogram: Histogram) -> Iterable[str]:
    yield from (f"# HELP groundup_{name} {meaning}", f"# TYPE groundup_{name} histogram")
    below = 0
    counts = list(histogram.counts)
    for bound, count in zip((*histogram.bounds, "+Inf"), counts, strict=True):
        below += count
        yield f'groundup_{name}_bucket{{le="{bound}"}} {below}'
    yield from (f"groundup_{name}_sum {histogram.sum}", f"groundup_{name}_count {below}")
