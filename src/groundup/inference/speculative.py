"""Speculative decoding: cheap guesses of the next tokens, which the model then checks all at once.

    text so far      the cat sat on
    guesses                         the  mat  and  slept       by a proposer, from any source
    one pass         what the model draws after each of them:
                                    the  mat  .                kept: two guesses and the draw that differs

A pass over five tokens costs little more than one over one token, as long as reading the weights is what takes the
time. The engine draws each token from the model's own distribution with the request's next random number, and goes on
as long as the draws are the guesses. So answers are token for token those without speculation, at any temperature,
under penalties and constraints, whatever is proposed; bad guesses only cost time.

Leviathan et al. 2022 (arXiv:2211.17192) instead accept a guess x, drawn from q, with probability min(1, p(x) / q(x)),
which keeps the distribution and not the tokens. It accepts a share 1 - |p - q| / 2. Here a draft model draws by the
same random number as the model, which accepts as often where both agree, and somewhat less often where they do not.
"""

from dataclasses import replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from groundup.inference.engine import Engine
from groundup.inference.request import Request
from groundup.model import Transformer
from groundup.model.multi_token import draft


class Guessing(Protocol):
    """The part of a request that guesses need: `ids` are the tokens of its prompt and its answer so far."""

    ids: list[int]


class _Seen:
    """Where each n-gram of a sequence ended last, and the time before; tokens are taken in once."""

    def __init__(self) -> None:
        self.ends: dict[tuple[int, ...], int] = {}
        self.earlier: dict[tuple[int, ...], int] = {}
        self.length = 0

    def take(self, ids: list[int], shortest: int, longest: int) -> None:
        for end in range(self.length + 1, len(ids) + 1):
            for n in range(shortest, min(longest, end) + 1):
                gram = tuple(ids[end - n : end])
                if gram in self.ends:
                    self.earlier[gram] = self.ends[gram]
                self.ends[gram] = end
        self.length = len(ids)


class NgramProposer:
    """What followed the last tokens when they stood there before: prompt lookup (Saxena 2023).

    The longest of the last `longest` to `shortest` tokens that occurred earlier counts, and its latest occurrence.
    Good where answers repeat the prompt, as summaries, edits and answers from documents do; where nothing repeats,
    nothing is proposed.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest={shortest}, longest={longest}; expected 1 <= shortest <= longest")
        self.longest, self.shortest = longest, shortest
        self._seen: WeakKeyDictionary[Any, _Seen] = WeakKeyDictionary()

    def propose(self, request: Guessing, count: int) -> list[int]:
        """At most `count` tokens; none where the end of the text is new."""
        seen = self._seen.setdefault(request, _Seen())
        seen.take(request.ids, self.shortest, self.longest)
        for n in range(min(self.longest, len(request.ids)), self.shortest - 1, -1):
            start = seen.earlier.get(tuple(request.ids[-n:]))
            if start is not None:
                return request.ids[start : start + count]
        return []


class DraftProposer:
    """What a smaller model with the same tokenizer draws.

    It runs in an engine of its own, whose prefix cache keeps what it has read of a text: a proposal reads the newest
    tokens only. It draws with copies of the request's settings and random numbers, so that it draws what the model
    does wherever the two agree. Requests of different `salt` share nothing here either.

    Raises ValueError for an engine of another vocabulary.
    """

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        if engine.tokenizer.vocab_size != vocab_size:
            raise ValueError(
                f"draft model: its tokenizer has {engine.tokenizer.vocab_size} tokens, and that of the model "
                f"{vocab_size}; drafts are ids and need the same tokenizer"
            )
        self.engine = engine

    def propose(self, request: Request, count: int) -> list[int]:
        """At most `count` tokens; none once the text outgrows the draft model's context."""
        room = min(self.engine.context_length, self.engine.core.capacity) - len(request.ids)
        if room < 1:
            return []
        params = replace(request.params, max_tokens=min(count, room), stop=(), logprobs=0, seed=0)
        drafting = self.engine.submit(request.ids, params, salt=request.salt)
        drafting.generator.set_state(request.generator.get_state())
        while drafting.finish_reason is None:
            self.engine.step()
        return drafting.tokens


class MultiTokenProposer:
    """What the model's own multi-token modules predict after its greedy next token (DeepSeek-V3, arXiv:2412.19437).

    Reads the last `window` tokens again without a cache, through the whole model and the modules: guesses need not
    see all of the text, but each costs a pass over the window. Raises ValueError for a model without such modules.
    """

    def __init__(self, model: Transformer, window: int = 32) -> None:
        if model.multi_token is None:
            raise ValueError("this model has no multi-token modules: train it with `multi_token` in its config")
        if window < 1:
            raise ValueError(f"window={window}; expected at least 1 token")
        self.model, self.window = model, window

    def propose(self, request: Guessing, count: int) -> list[int]:
        """At most `count` tokens, and at most one more than the model has modules."""
        tokens = torch.tensor([request.ids[-self.window :]], device=self.model.device)
        return draft(self.model, tokens)[0, :count].tolist()
