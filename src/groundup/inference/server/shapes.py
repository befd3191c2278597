"""OpenAI's JSON: completions, chat completions, their chunks, and log-probabilities."""

import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from groundup.inference.sampling import TokenLogprob

FINISH = {"end": "stop", "stop": "stop", "length": "length"}
LOWEST = -9999.0  # JSON has no minus infinity


class Spelling:
    """Tokens as clients see them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def bytes_of(self, token: int) -> bytes:
        """Empty for an id of a padded vocabulary, which has no text."""
        return self._tokenizer.vocab.get(token, b"")

    def text(self, token: int) -> str:
        """As OpenAI spells it: a token that is no whole characters as `bytes:` and escapes."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def chat(self, entries: Sequence[TokenLogprob], top: int) -> dict[str, Any]:
        """The `logprobs` of a chat choice."""
        content = [
            {**self._entry(e.token, e.logprob), "top_logprobs": [self._entry(*pair) for pair in e.top[:top]]}
            for e in entries
        ]
        return {"content": content, "refusal": None}

    def completion(self, entries: Sequence[TokenLogprob | int], top: int, offset: int) -> dict[str, Any]:
        """The `logprobs` of a completion choice whose text before has `offset` characters.

        A plain id stands for a token of unknown probability: the first of a prompt.
        """
        tokens = [self.text(e if isinstance(e, int) else e.token) for e in entries]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None if isinstance(e, int) else _number(e.logprob) for e in entries],
            "top_logprobs": [None if isinstance(e, int) else self._top(e, top) for e in entries] if top else None,
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob, top: int) -> dict[str, float]:
        pairs = [*reversed(entry.top[:top]), (entry.token, entry.logprob)]
        return {self.text(token): _number(logprob) for token, logprob in reversed(pairs)}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": _number(logprob), "bytes": list(self.bytes_of(token))}


def _number(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST


def new_envelope(chat: bool, streamed: bool, model: str) -> dict[str, Any]:
    """What every answer begins with."""
    prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind + (".chunk" if chat and streamed else ""),
        "created": int(time.time()),
        "model": model,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read and written."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}  # fmt: skip


def text_choice(index: int, text: str, finish: str | None, logprobs: Any) -> dict[str, Any]:
    """A choice of a completion, whole or a piece of it."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def message_choice(index: int, text: str, calls: list[Any], finish: str | None, logprobs: Any) -> dict[str, Any]:
    """A choice of a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def delta_choice(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    """A piece of a chat completion."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
