"""How fast answers came, and what share of the machine that was.

    |------ the prompt, all tokens at once ------|- token -|- token -| ... |
    arrived                                      first                    last
      TTFT: bound by arithmetic                    TPOT: bound by memory
      MFU = FLOPs of the prompt / TTFT / peak      MBU = bytes that a step reads / TPOT / bandwidth

The two shares are far apart: Pope et al. 2022, "Efficiently scaling transformer inference" (arXiv:2211.05102).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from groundup.accounting import Ceiling, cache_bytes, count_parameters, step_work
from groundup.inference.engine import Engine
from groundup.inference.sequence import Completion


@dataclass(frozen=True)
class Pace:
    """Of answers to one prompt that ran together: seconds to the first token of the first of them, and seconds between
    the tokens of an answer (None where none has a second one); FLOPs of the prompt, and bytes that a step reads.

    `computed_tokens` are those of the prompt, once for each answer, that were not found computed. The bytes are those
    of the weights and, for every answer, of what the caches hold halfway through it.
    """

    prompt_tokens: int
    computed_tokens: int
    answers: int
    answer_tokens: int
    first_token: float
    per_token: float | None
    prefill_flops: int
    step_bytes: int

    def mfu(self, device: Ceiling) -> float:
        """The share of the device's matmul rate that reading the prompt came to."""
        return self.prefill_flops / self.first_token / device.peak_flops

    def mbu(self, device: Ceiling) -> float | None:
        """The share of the device's memory bandwidth that writing came to; from caches it may be above 1."""
        return None if self.per_token is None else self.step_bytes / self.per_token / device.bandwidth

    def record(self, device: Ceiling) -> dict[str, Any]:
        """All of it as plain values, with the shares and what they are shares of."""
        shares = {"mfu": self.mfu(device), "mbu": self.mbu(device)}
        return asdict(self) | shares | {"peak_flops": device.peak_flops, "bandwidth": device.bandwidth}

    def lines(self, device: Ceiling) -> list[str]:
        """For people: the prompt, the answer, the machine."""
        rate = self.computed_tokens / self.first_token
        known = self.answers * self.prompt_tokens - self.computed_tokens
        prompt = (
            f"prompt   {self.prompt_tokens} tokens{f', {known} of all known' if known else ''}: "
            f"{self.first_token * 1e3:.1f} ms to the first token, {rate:,.0f} tokens/s, "
            f"{self.prefill_flops / self.first_token / 1e9:,.0f} GFLOP/s (MFU {self.mfu(device):.2f})"
        )
        return [
            prompt,
            self._answers(device),
            f"machine  {device.peak_flops / 1e9:,.0f} GFLOP/s, {device.bandwidth / 1e9:.1f} GB/s",
        ]

    def _answers(self, device: Ceiling) -> str:
        head = f"answer{'s' if self.answers > 1 else ' '}  {self.answer_tokens} tokens"
        share = self.mbu(device)
        if self.per_token is None or share is None:
            return f"{head}: no second one, so no time between two"
        return (
            f"{head}: {self.per_token * 1e3:.2f} ms a token, {self.answers / self.per_token:,.1f} tokens/s, "
            f"{self.step_bytes / self.per_token / 1e9:.1f} GB/s (MBU {share:.2f})"
        )


def pace(engine: Engine, completions: Sequence[Completion], computed_tokens: int) -> Pace:
    """Of answers that `engine` gave to one prompt at the same time, having computed so many tokens of it for them.

    ValueError where no answer has a token.
    """
    timed = [(each.timing, len(each.tokens)) for each in completions if each.timing is not None]
    if not timed:
        raise ValueError("pace: no answer has a token, so there is nothing to time")
    between = [(timing.last_token - timing.first_token) / (count - 1) for timing, count in timed if count > 1]
    config, prompt = engine.model.config, completions[0].prompt_tokens
    reading = sum(row.flops for row in step_work(config, "prefill", batch=1, seq=prompt) if row.kind != "elementwise")
    tokens = sum(len(each.tokens) for each in completions)
    halfway = prompt + tokens // (2 * len(completions))
    return Pace(
        prompt_tokens=prompt,
        computed_tokens=computed_tokens,
        answers=len(completions),
        answer_tokens=tokens,
        first_token=min(timing.first_token - timing.arrived for timing, _ in timed),
        per_token=median(between) if between else None,
        prefill_flops=reading * computed_tokens // prompt,
        step_bytes=step_bytes(engine, len(completions), halfway),
    )


def step_bytes(engine: Engine, rows: int, context: int) -> int:
    """Bytes that a decode step reads: the weights once, and the caches of `rows` sequences of `context` tokens.

    Of a table of embeddings a step reads single rows, unless it is the head as well. Experts count as for one row.
    """
    config = engine.model.config
    dtype, weights = engine.core.execution.activations, engine.core.weight_bytes
    if weights is None:
        counted = count_parameters(config)
        weights = (counted.active - (counted.embedding if counted.head else 0)) * dtype.itemsize
    work = step_work(config, "decode", batch=rows, seq=context, dtype=dtype)
    seen = sum(row.bytes_moved for row in work if row.name == "attention")
    return weights + seen + rows * cache_bytes(config, dtype).fixed
