"""From logits to a token: temperature, top-k, top-p, min-p, and one random number per token.

The order is Hugging Face's: temperature, then top-k, then top-p over what top-k left, then min-p. (vLLM
applies min-p first, so there top-p sees what min-p left and can keep fewer tokens.)

A draw inverts the cumulative distribution at one uniform number from the request's own generator. So what a
request draws depends on its seed and its logits, and not on the requests beside it or on the device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Setting = float | int | Tensor  # one number, or one per row as (batch, 1)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


MAX_STOP_TEXTS, MAX_STOP_LENGTH = 64, 256
"""Texts, and characters of one: every piece of an answer is compared with all of them."""
MAX_BIASES = 1024


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def _are_texts(value: Any) -> bool:
    texts = (value,) if isinstance(value, str) else value
    return (
        isinstance(texts, (list, tuple))
        and len(texts) <= MAX_STOP_TEXTS
        and all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH for text in texts)
    )


def _are_biases(value: Any) -> bool:
    if not isinstance(value, (Mapping, list, tuple)) or len(value) > MAX_BIASES:
        return False
    pairs = list(value.items()) if isinstance(value, Mapping) else list(value)
    return all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and _is_int(pair[0])
        and 0 <= pair[0] < 2**31
        and _is_number(pair[1])
        and abs(pair[1]) <= 100
        for pair in pairs
    )


ALLOWED = {
    "max_tokens": (lambda v: _is_int(v) and v >= 0, "an integer of at least 0"),
    "temperature": (lambda v: _is_number(v) and v >= 0, "a finite number of at least 0"),
    "top_k": (lambda v: _is_int(v) and v >= 1, "an integer of at least 1"),
    "top_p": (lambda v: _is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
    "min_p": (lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
    "stop": (
        _are_texts,
        f"a text or at most {MAX_STOP_TEXTS}, none of them empty or longer than {MAX_STOP_LENGTH} characters",
    ),
    "seed": (lambda v: _is_int(v) and 0 <= v < 2**63, "an integer from 0 to 2^63 - 1"),
    "logprobs": (lambda v: _is_int(v) and v >= 0, "an integer of at least 0"),
    "repetition_penalty": (lambda v: _is_number(v) and 0.01 <= v <= 100, "a number in [0.01, 100]"),
    "presence_penalty": (lambda v: _is_number(v) and -2 <= v <= 2, "a number in [-2, 2]"),
    "frequency_penalty": (lambda v: _is_number(v) and -2 <= v <= 2, "a number in [-2, 2]"),
    "logit_bias": (_are_biases, f"at most {MAX_BIASES} pairs of a token id and a number in [-100, 100]"),
}
OPTIONAL = ("top_k", "top_p", "min_p", "seed")
REALS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Raises ValueError naming the field that makes no sense.

    max_tokens: at most so many new tokens; the context length may end the text earlier.
    temperature: divides the logits; 0 takes the most likely token (the lowest id among equals).
    top_k: keep the k most likely tokens (and all that tie with the k-th).
    top_p: keep the smallest set of most likely tokens whose probabilities reach top_p (Holtzman et al. 2019,
        arXiv:1904.09751).
    min_p: keep tokens with at least min_p times the probability of the most likely (Nguyen et al. 2024,
        arXiv:2407.01082).
    stop: texts that end the answer; they are not part of it.
    seed: makes the draws repeatable. None takes a seed from torch's global generator.
    logprobs: for every token its log-probability and the n most likely ones, under the model's own
        distribution (before temperature and filters). 0: none.
    repetition_penalty: divides the logit of every token of prompt and answer where it is positive, and multiplies it
        where it is negative; above 1 makes them less likely (Keskar et al. 2019, arXiv:1909.05858).
    presence_penalty: subtracted from the logit of every token that the answer has.
    frequency_penalty: subtracted once for each time that the answer has the token.
    logit_bias: token ids, each with a number to add to its logit; kept as pairs in the order of ids.
    """

    max_tokens: int = 128
    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    min_p: float | int | None = None
    stop: str | tuple[str, ...] | list[str] = ()
    seed: int | None = None
    logprobs: int = 0
    repetition_penalty: float | int = 1.0
    presence_penalty: float | int = 0.0
    frequency_penalty: float | int = 0.0
    logit_bias: Mapping[int, float | int] | tuple[tuple[int, float | int], ...] = ()

    def __post_init__(self) -> None:
        for name, (is_allowed, allowed) in ALLOWED.items():
            value = getattr(self, name)
            if not (value is None and name in OPTIONAL) and not is_allowed(value):
                raise ValueError(f"{name}={_shown(value)}; expected {allowed}")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "logit_bias", self.biases)
        for name in REALS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs in the order of ids."""
        given: Any = self.logit_bias
        return tuple(sorted((token, float(bias)) for token, bias in dict(given).items()))


def _shown(value: Any) -> str:
    """A hostile value may have a million digits, or be a million texts."""
    if _is_int(value) and abs(value) >= 10**80:
        return "an integer of more than 80 digits"
    return f"{value!r:.80}" if not isinstance(value, (Mapping, list, tuple)) else f"{len(value)} entries"


class TokenLogprob(NamedTuple):
    """A token's natural-log probability, and the most likely tokens at its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def scale(logits: Float[Tensor, "batch vocab"], temperature: Setting) -> Float[Tensor, "batch vocab"]:
    """(logits - max) / temperature: the same softmax as logits / temperature, for any temperature above 0.

    Subtracting first keeps a temperature of 1e-30 from making infinity minus infinity.
    """
    bounded = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device).clamp(1e-30, 1e30)
    return (logits - logits.amax(-1, keepdim=True)) / bounded


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: Setting) -> Float[Tensor, "batch vocab"]:
    """-inf for every logit below the k-th largest of its row."""
    vocab = logits.shape[-1]
    count = torch.as_tensor(k, device=logits.device).clamp(1, vocab).long().expand(logits.shape[0], 1)
    largest = logits.topk(int(count.max()), dim=-1).values
    return logits.masked_fill(logits < largest.gather(-1, count - 1), -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: Setting) -> Float[Tensor, "batch vocab"]:
    """-inf outside the smallest set of most likely tokens that holds probability p; one always stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # not `before >= p` alone: with p = 1, rounding can push `before` to 1 ahead of the last tokens
    limit = torch.as_tensor(p, dtype=logits.dtype, device=logits.device)
    drop = (before >= limit) & (limit < 1)
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], p: Setting) -> Float[Tensor, "batch vocab"]:
    """-inf where probability < p * (the largest one), compared as logits so that nothing underflows."""
    floor = torch.as_tensor(p, dtype=logits.dtype, device=logits.device).log()
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + floor, -torch.inf)


def distribution(
    logits: Float[Tensor, "batch vocab"], params: Sequence[SamplingParams]
) -> Float[Tensor, "batch vocab"]:
    """What each row's token is drawn from. A row with temperature 0 has all its mass on one token."""
    greedy = torch.tensor([[p.temperature == 0] for p in params], device=logits.device)
    x = scale(logits.float(), _column(logits, [p.temperature or 1.0 for p in params]))
    if any(p.top_k is not None for p in params):
        x = keep_top_k(x, _column(logits, [min(p.top_k or logits.shape[-1], logits.shape[-1]) for p in params]))
    if any(p.top_p is not None for p in params):
        x = keep_top_p(x, _column(logits, [p.top_p or 1.0 for p in params]))
    if any(p.min_p is not None for p in params):
        x = keep_min_p(x, _column(logits, [p.min_p or 0.0 for p in params]))
    one_hot = torch.zeros_like(x).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy, one_hot, x.softmax(-1))


def draw(probabilities: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, "batch 1"]) -> Int[Tensor, " batch"]:
    """The token at which the cumulative distribution passes the uniform number (in [0, 1)).

    Cumulated in float64: in float32 the error over a large vocabulary exceeds rare tokens' probabilities. A number that
    is rounded up to 1 gives the last token that has a probability, and not one of probability 0 behind it.
    """
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64  # MPS has no float64
    cumulative = probabilities.cumsum(-1, dtype=wide)
    target = uniforms.to(wide).to(cumulative.device) * cumulative[:, -1:]
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.searchsorted(cumulative, target, right=True).minimum(last).squeeze(-1)


def most_likely(logits: Float[Tensor, "batch vocab"]) -> list[int]:
    """Where each row has its largest logit. Raises ValueError when a row has no usable logits (NaN or infinity).

    Through numpy on a CPU: torch finds the largest without vector instructions, and after a step that has read all
    weights nothing of torch is in the caches, so that each of its operations takes as long as this whole function.
    """
    if logits.is_cpu and logits.dtype == torch.float32:
        rows = logits.numpy()
        best = rows.argmax(-1).tolist()
        values = [float(row[token]) for row, token in zip(rows, best, strict=True)]
    else:
        places = logits.argmax(-1, keepdim=True)
        best, values = places.flatten().tolist(), logits.gather(-1, places).flatten().tolist()
    broken = [row for row, value in enumerate(values) if not math.isfinite(value)]
    if broken:
        raise broken_logits(broken)
    return best


def broken_logits(rows: list[int]) -> ValueError:
    """What is raised for rows whose largest logit is no number."""
    return ValueError(f"the model's logits are NaN or infinite (rows {rows}): its weights are broken")


def sample(
    logits: Float[Tensor, "batch vocab"],
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator],
) -> list[int]:
    """One token per row. Raises ValueError when a row has no usable logits (NaN or infinity)."""
    best = most_likely(logits)
    if all(p.temperature == 0 for p in params):
        return best
    uniforms = [torch.rand(1, generator=g, dtype=torch.float64) for g in generators]
    return draw(distribution(logits, params), torch.stack(uniforms)).tolist()


def token_logprobs(
    logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, " batch"], count: int
) -> list[TokenLogprob]:
    """Each row's chosen token with the `count` most likely ones, from the unmodified logits.

    Tokens that cannot come, whose logits are -inf, are not listed: so are the rows that pad a vocabulary.
    """
    logp = logits.float().log_softmax(-1)
    chosen = logp.gather(-1, tokens[:, None]).squeeze(-1).tolist()
    best = logp.topk(min(count, logp.shape[-1]), dim=-1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    tops = [tuple(pair for pair in zip(*row, strict=True) if pair[1] > -math.inf) for row in pairs]
    return [TokenLogprob(*row) for row in zip(tokens.tolist(), chosen, tops, strict=True)]


def new_generator(seed: int | None) -> torch.Generator:
    """A generator of one request's own, on the CPU so that its numbers are the same everywhere."""
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    return torch.Generator().manual_seed(seed)


def _column(like: Tensor, values: list[Any]) -> Float[Tensor, "batch 1"]:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
