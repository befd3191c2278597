"""Outputs of the engine as answers of the API: whole, or in chunks."""

from collections.abc import Collection
from typing import Any

from groundup.inference.sampling import TokenLogprob
from groundup.inference.server import shapes
from groundup.inference.server.choosing import Wanted
from groundup.inference.server.tools import CallReader, ForcedCall


class Choice:
    """One answer so far."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.count = 0
        self.logprobs: list[TokenLogprob] = []
        self.finish: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


class Writer:
    """The choices of one request: `prompts` times n, in that order."""

    chat = False

    def __init__(self, tokenizer: Any, model: str, streamed: bool, want: Wanted, prompts: list[list[int]]) -> None:
        self.prompts, self.want = prompts, want
        self.envelope = shapes.new_envelope(self.chat, streamed, model)
        self.spelling = shapes.Spelling(tokenizer)
        self.choices = [Choice() for _ in prompts for _ in want.params]

    @property
    def nothing_to_generate(self) -> bool:
        """max_tokens is 0: the engine is not needed."""
        return self.want.params[0].max_tokens == 0

    def add(self, index: int, output: Any) -> Choice:
        """Take what one step gave."""
        choice = self.choices[index]
        choice.pieces.append(output.text)
        choice.count += len(output.tokens)
        choice.logprobs += output.logprobs
        choice.finish = shapes.FINISH.get(output.finish_reason)  # none with "error", which is raised next
        return choice

    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        return shapes.usage(sum(map(len, self.prompts)), sum(choice.count for choice in self.choices))

    def whole(self) -> dict[str, Any]:
        """The answer, once all choices have ended."""
        choices = [self.choice(index, choice) for index, choice in enumerate(self.choices)]
        return {**self.envelope, "choices": choices, "usage": self.usage()}

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, when it was asked for."""
        return {**self.envelope, "choices": [], "usage": self.usage()}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """One event."""
        return {**self.envelope, "choices": [choice]}

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice."""
        raise NotImplementedError

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first token."""
        return []

    def chunks(self, index: int, output: Any) -> list[dict[str, Any]]:
        """The chunks of one step, often none."""
        raise NotImplementedError

    def empty_chunks(self) -> list[dict[str, Any]]:
        """The chunks of an answer that has no tokens."""
        raise NotImplementedError


class CompletionWriter(Writer):
    """/v1/completions. `scores` are the log-probabilities of each prompt's tokens but the first."""

    def __init__(self, tokenizer: Any, model: str, streamed: bool, want: Wanted, prompts: list[list[int]],
                 echo: bool, scores: list[list[TokenLogprob]] | None) -> None:  # fmt: skip
        super().__init__(tokenizer, model, streamed, want, prompts)
        self.scores = scores
        known = tokenizer.vocab_size  # ids of a padded vocabulary have no text
        self.echoed = [tokenizer.decode([i for i in ids if i < known]) if echo else "" for ids in prompts]
        self._sent = [0] * len(self.choices)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        prompt = index // len(self.want.params)
        logprobs = None
        if self.want.top is not None:
            before = [self.prompts[prompt][0], *self.scores[prompt]] if self.scores is not None else []
            logprobs = self.spelling.completion([*before, *choice.logprobs], self.want.top, 0)
        finish = choice.finish or "length"
        return shapes.text_choice(index, self.echoed[prompt] + choice.text, finish, logprobs)

    def opening(self) -> list[dict[str, Any]]:
        if not any(self.echoed):
            return []
        each = len(self.want.params)
        return [self.chunk(shapes.text_choice(i, self.echoed[i // each], None, None)) for i in range(len(self.choices))]

    def chunks(self, index: int, output: Any) -> list[dict[str, Any]]:
        choice = self.add(index, output)
        logprobs = None
        if self.want.top is not None and output.logprobs:
            logprobs = self.spelling.completion(output.logprobs, self.want.top, self._sent[index])
        self._sent[index] += len(output.text)
        if not (output.text or choice.finish or logprobs):
            return []
        return [self.chunk(shapes.text_choice(index, output.text, choice.finish, logprobs))]

    def empty_chunks(self) -> list[dict[str, Any]]:
        return [self.chunk(shapes.text_choice(i, "", "length", None)) for i in range(len(self.choices))]


class ChatWriter(Writer):
    """/v1/chat/completions. `tools` are the names of functions that may be called; with `must_call` the answer is a
    call, by its constraint."""

    chat = True

    def __init__(self, tokenizer: Any, model: str, streamed: bool, want: Wanted, prompts: list[list[int]],
                 tools: Collection[str], must_call: bool = False) -> None:  # fmt: skip
        super().__init__(tokenizer, model, streamed, want, prompts)
        self._readers = [CallReader(tools) for _ in self.choices]
        self._forced = [ForcedCall() for _ in self.choices] if must_call else None

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text, calls = self._read(index, choice.text, is_last=True)
        finish = self._finish(index, choice, calls) or "length"
        return shapes.message_choice(index, text, calls, finish, self._logprobs(choice.logprobs))

    def opening(self) -> list[dict[str, Any]]:
        first = {"role": "assistant", "content": None if self._forced else ""}
        return [self.chunk(shapes.delta_choice(i, first)) for i in range(len(self.choices))]

    def chunks(self, index: int, output: Any) -> list[dict[str, Any]]:
        choice = self.add(index, output)
        text, calls = self._read(index, output.text, is_last=choice.finish is not None)
        logprobs = self._logprobs(output.logprobs) if output.logprobs else None
        made = []
        if text or logprobs:
            made.append(shapes.delta_choice(index, {} if self._forced else {"content": text}, None, logprobs))
        if calls:
            delta = {"tool_calls": [{"index": place, **call} for place, call in enumerate(calls)]}
            made.append(shapes.delta_choice(index, delta))
        if choice.finish:
            made.append(shapes.delta_choice(index, {}, self._finish(index, choice, calls)))
        return [self.chunk(each) for each in made]

    def empty_chunks(self) -> list[dict[str, Any]]:
        return [self.chunk(shapes.delta_choice(i, {}, "length")) for i in range(len(self.choices))]

    def _read(self, index: int, text: str, is_last: bool) -> tuple[str, list[dict[str, Any]]]:
        """What can be shown of the next piece, and the calls in it."""
        if self._forced is not None:
            return "", self._forced[index].push(text)
        shown = self._readers[index].push(text)
        if not is_last:
            return shown, []
        rest, calls = self._readers[index].finish()
        return shown + rest, calls

    def _finish(self, index: int, choice: Choice, calls: list[dict[str, Any]]) -> str | None:
        """A call that was cut is not a call that was made."""
        called = bool(calls) if self._forced is None else self._forced[index].ended
        return "tool_calls" if called else choice.finish

    def _logprobs(self, entries: list[TokenLogprob]) -> dict[str, Any] | None:
        return None if self.want.top is None else self.spelling.chat(entries, self.want.top)
