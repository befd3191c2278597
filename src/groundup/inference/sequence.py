"""One request while it is being answered: its tokens, the text that can be shown, and why it ended."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from groundup.inference.sampling import SamplingParams, TokenLogprob, new_generator

FinishReason = Literal["stop", "length", "end", "abort", "error"]


@dataclass(frozen=True)
class Timing:
    """When a request arrived and had its first and its last token, in seconds of `time.perf_counter`."""

    arrived: float
    first_token: float
    last_token: float


@dataclass(frozen=True)
class Completion:
    """What came of a request.

    `tokens` is all that was sampled, with the token that ended it; `text` leaves out that token, and a stop
    text with what follows it. `finish_reason`: "end" (the model ended the text or its turn), "stop" (a stop
    text), "length" (max_tokens or the context length), "abort" (who asked wants no more) or "error". `logprobs`
    has an entry per token, or is None when none were asked for. `prompt_tokens` counts the prompt's. `timing` is None
    without a token.
    """

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    prompt_tokens: int
    timing: Timing | None = field(default=None, compare=False)


@runtime_checkable
class TextDecoder(Protocol):
    """A tokenizer's stream: ids in, whole characters out."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class StopMatcher:
    """Passes text on until the first stop text, holding back what may turn out to be the start of one.

    >>> matcher = StopMatcher(("END",))
    >>> [matcher.push(piece) for piece in ("one E", "N", "E END two")], matcher.stopped
    (['one ', '', 'ENE '], True)
    """

    def __init__(self, stop: Collection[str]) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._starts = {text[:n] for text in stop for n in range(1, len(text))}
        self._longest = max(map(len, stop), default=1) - 1
        self._held = ""

    def push(self, text: str) -> str:
        """What of the text so far can be shown; nothing any more once a stop text was seen."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = next((n for n in range(min(self._longest, len(text)), 0, -1) if text[-n:] in self._starts), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest


class Sequence:
    """A prompt and its answer so far. `room` is the number of tokens that the context still holds."""

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        decoder: TextDecoder,
        end_ids: Collection[int],
        room: int,
    ) -> None:
        self.prompt, self.params = prompt, params
        self.generator = new_generator(params.seed)
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.arrived = self.last_token = time.perf_counter()
        self.first_token: float | None = None
        self.limit = min(params.max_tokens, room)
        self.finish_reason: FinishReason | None = None if self.limit else "length"
        self._decoder, self._end_ids = decoder, end_ids
        self._matcher = StopMatcher(params.stop)

    def push(self, token: int, logprob: TokenLogprob | None = None) -> str:
        """Take the next token; return the text that it makes visible, often none."""
        assert self.finish_reason is None, "a finished sequence takes no more tokens"
        self.tokens.append(token)
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self._end_ids:
            return self._show(self._finish("end"))
        text = self._matcher.push(self._decoder.push(token))
        if self._matcher.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.limit:
            text += self._finish("length")
        return self._show(text)

    def release(self) -> str:
        """The text that was held back because a stop text might have begun with it: no more text comes."""
        return self._show(self._matcher.flush())

    def _finish(self, reason: FinishReason) -> str:
        text = self._matcher.push(self._decoder.flush())
        self.finish_reason = "stop" if self._matcher.stopped else reason
        return text + self._matcher.flush()

    def _show(self, text: str) -> str:
        self.pieces.append(text)
        return text

    def completion(self) -> Completion:
        """The answer, once it is finished."""
        assert self.finish_reason is not None, "not finished"
        logprobs = self.logprobs if self.params.logprobs else None
        timing = None if self.first_token is None else Timing(self.arrived, self.first_token, self.last_token)
        return Completion("".join(self.pieces), self.tokens, logprobs, self.finish_reason, len(self.prompt), timing)
