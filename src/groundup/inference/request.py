"""A sequence on its way through the engine: what is computed, where it is kept, and what each step made of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from groundup.inference.pages import Parent
from groundup.inference.sampling import SamplingParams, TokenLogprob
from groundup.inference.sequence import FinishReason, Sequence, TextDecoder

ANSWERED: tuple[FinishReason, ...] = ("end", "stop", "length")


@runtime_checkable
class Constraint(Protocol):
    """What an answer may be: a mask over the vocabulary that follows the tokens so far.

    `finished`: nothing but an end token is allowed any more.
    """

    @property
    def finished(self) -> bool: ...

    def mask(self) -> Bool[Tensor, " vocab"]: ...

    def push(self, token: int) -> None: ...


class Request(Sequence):
    """A sequence with its place in the engine.

    `ids` are the prompt's and the answer's tokens; the first `computed` of them are in `pages`. `slot` is its row of
    the store while it runs. `keys` are those of its known blocks. `salt` keeps users apart: prefixes are shared among
    requests of the same salt. `draft` holds proposed tokens that the next step verifies. `failure` is the exception
    that ended it.
    """

    def __init__(
        self,
        number: int,
        prompt: list[int],
        params: SamplingParams,
        decoder: TextDecoder,
        end_ids: Collection[int],
        room: int,
        salt: str = "",
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__(prompt, params, decoder, end_ids, room)
        self.id, self.salt, self.constraint = number, salt, constraint
        self.ids = list(prompt)
        self.computed = 0
        self.pages: list[int] = []
        self.keys: list[int] = []
        self.slot: int | None = None
        self.draft: list[int] = []
        self.failure: Exception | None = None
        self.cached_tokens = 0

    @property
    def pending(self) -> int:
        """Known tokens that are still to be computed: 1 when decoding."""
        return len(self.ids) - self.computed

    @property
    def parent(self) -> Parent:
        """What a block after the known ones has as parent."""
        return self.keys[-1] if self.keys else self.salt

    @property
    def error(self) -> str | None:
        """What went wrong, in words."""
        if self.failure is None:
            return None
        return str(self.failure) or type(self.failure).__name__

    def push(self, token: int, logprob: TokenLogprob | None = None) -> str:
        """As `Sequence.push`; the constraint follows."""
        self.ids.append(token)
        if self.constraint is not None:
            self.constraint.push(token)
        return super().push(token, logprob)

    def end(self, reason: FinishReason) -> None:
        """Stop here, whatever was to come."""
        if self.finish_reason is None:
            self.finish_reason = reason

    def fail(self, failure: Exception) -> None:
        """Stop with an error."""
        self.failure = failure
        self.end("error")


@dataclass(frozen=True)
class Output:
    """What one step made of a request: new tokens and the text that they make visible, often none.

    `logprobs` has an entry per token when they were asked for. The last output has a `finish_reason`; with "error",
    `error` tells what went wrong.
    """

    request: Request
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    error: str | None = None


@dataclass(frozen=True)
class EngineStats:
    """Now: requests that wait and run, pages in all, held and kept for prefixes. Since the start: the rest.

    `prompt_tokens` are those of admitted requests, of which `cached_prompt_tokens` were found computed. Of the
    `drafted_tokens` that were verified, the model drew `accepted_tokens` itself. Every submitted request that neither
    waits nor runs is in `requests_ended`, once, under its finish reason.
    """

    waiting: int
    running: int
    pages_total: int
    pages_used: int
    pages_cached: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    preemptions: int
    steps: int
    requests_submitted: int
    requests_ended: Mapping[FinishReason, int]
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def requests_finished(self) -> int:
        """Those that were answered."""
        return sum(self.requests_ended.get(reason, 0) for reason in ANSWERED)

    @property
    def requests_failed(self) -> int:
        """Those that an error ended."""
        return self.requests_ended.get("error", 0)

    @property
    def requests_aborted(self) -> int:
        """Those whose answer nobody wanted any more."""
        return self.requests_ended.get("abort", 0)

    @property
    def acceptance_rate(self) -> float:
        """The share of drafted tokens that were right; 0 where none were drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0
