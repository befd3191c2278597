"""The objects that clients get: completions, chat completions, their pieces in a stream, log-probabilities, usage."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.inference.sampling import TokenLogprob
from groundup.inference.service import Event

REASONS = {"end": "stop", "stop": "stop", "length": "length"}


class TokenNames:
    """How tokens are written in JSON: their text, or `bytes:\\xe4` for what is no text alone."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def raw(self, token: int) -> bytes:
        """The token's bytes; none for a row of a padded vocabulary."""
        return self._tokenizer.decode_bytes([token]) if token < self._tokenizer.vocab_size else b""

    def text(self, token: int) -> str:
        """The token as text."""
        raw = self.raw(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass
class Choice:
    """One answer as far as it is known."""

    index: int
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    reason: str | None = None

    def add(self, event: Event) -> None:
        """Take what a step brought."""
        self.pieces.append(event.text)
        self.tokens += len(event.tokens)
        self.logprobs += event.logprobs
        self.reason = event.finish_reason or self.reason

    @property
    def text(self) -> str:
        """The answer's text."""
        return "".join(self.pieces)


class CompletionForm:
    """/v1/completions. An entry of log-probabilities has the text's offset, counted from the start of what is shown."""

    kind, prefix = "text_completion", "cmpl"
    chunk_kind = kind

    def __init__(self, names: TokenNames, tops: int | None) -> None:
        self._names, self._tops = names, tops
        self._offsets: dict[int, int] = {}

    def choice(self, choice: Choice, text: str | None = None) -> dict[str, Any]:
        """A whole answer; `text` replaces its own, where the prompt stands before it."""
        text = choice.text if text is None else text
        return self._made(choice.index, text, choice.logprobs, choice.reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        """Nothing comes before the first token."""
        return None

    def piece(self, event: Event) -> dict[str, Any]:
        """What a step brought, as a choice of a chunk."""
        return self._made(event.index, event.text, event.logprobs, event.finish_reason)

    def _made(self, index: int, text: str, entries: Sequence[TokenLogprob | None], reason: str | None) -> Any:
        logprobs = self._logprobs(index, entries) if self._tops is not None else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": REASONS.get(reason or "")}

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        offsets, at = [], self._offsets.get(index, 0)
        shown = [self._names.text(entry.token) if entry else "" for entry in entries]
        for text in shown:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        return {
            "tokens": shown,
            "token_logprobs": [entry.logprob if entry else None for entry in entries],
            "top_logprobs": [self._tops_of(entry) if entry else None for entry in entries],
            "text_offset": offsets,
        }

    def _tops_of(self, entry: TokenLogprob) -> dict[str, float]:
        """By text, and so the likelier of two tokens that are written alike; the chosen one is always there."""
        tops: dict[str, float] = {}
        for token, logprob in (*entry.top[: self._tops or 0], (entry.token, entry.logprob)):
            tops.setdefault(self._names.text(token), logprob)
        return tops


class ChatForm:
    """/v1/chat/completions."""

    kind, prefix = "chat.completion", "chatcmpl"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, names: TokenNames, tops: int | None) -> None:
        self._names, self._tops = names, tops

    def choice(self, choice: Choice) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self._made(choice.index, "message", message, choice.logprobs, choice.reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice says who speaks."""
        return self._made(index, "delta", {"role": "assistant", "content": ""}, (), None)

    def piece(self, event: Event) -> dict[str, Any]:
        """What a step brought, as a choice of a chunk."""
        delta = {"content": event.text} if event.text else {}
        return self._made(event.index, "delta", delta, event.logprobs, event.finish_reason)

    def _made(self, index: int, name: str, value: Any, entries: Sequence[Any], reason: str | None) -> dict[str, Any]:
        logprobs = {"content": [self._entry(entry) for entry in entries], "refusal": None} if self._tops is not None else None  # fmt: skip
        return {"index": index, name: value, "logprobs": logprobs, "finish_reason": REASONS.get(reason or "")}

    def _entry(self, entry: TokenLogprob) -> dict[str, Any]:
        tops = [self._token(token, logprob) for token, logprob in entry.top[: self._tops or 0]]
        return self._token(entry.token, entry.logprob) | {"top_logprobs": tops}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._names.text(token), "logprob": logprob, "bytes": list(self._names.raw(token))}


Form = CompletionForm | ChatForm


class Envelope:
    """What is around the choices: the same id, time and model for all pieces of an answer."""

    def __init__(self, form: Form, model: str) -> None:
        self._form = form
        self._head = {"id": f"{form.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer that is no stream."""
        return {**self._head, "object": self._form.kind, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """One piece of a stream."""
        made = {**self._head, "object": self._form.chunk_kind, "choices": choices}
        return made if usage is None else {**made, "usage": usage}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read and written. A prompt counts once, however many answers it gets."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
