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
from jaxtyping import Float
from torch import Tensor

from groundup.inference.engine import Engine
from groundup.inference.request import Request
from groundup.model import Transformer
from groundup.model.cache import DenseCache


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
        """At most `count` tokens; none once the text outgrows the draft model's context, or has an id that it has not:
        the rows that pad one model's vocabulary are not those of another's."""
        room = min(self.engine.context_length, self.engine.core.capacity) - len(request.ids)
        if room < 1 or max(request.ids) >= self.engine.model.config.vocab_size:
            return []
        params = replace(request.params, max_tokens=min(count, room), stop=(), logprobs=0, seed=0)
        drafting = self.engine.submit(request.ids, params, salt=request.salt)
        drafting.generator.set_state(request.generator.get_state())
        while drafting.finish_reason is None:
            self.engine.step()
        return drafting.tokens


class _Heads:
    """What the modules know of one request, for places from `begin` on.

    states: what the model's head read at the places from `settled` on, (1, places, d_model)
    caches: one per depth. Entries below `settled` were made from tokens that stand, others from guesses, too
    """

    def __init__(self, begin: int, depth: int, states: Tensor) -> None:
        self.begin = self.settled = begin
        self.states = states[None]
        self.caches = [DenseCache() for _ in range(depth)]

    @property
    def end(self) -> int:
        return self.settled + self.states.shape[1]

    def settle(self, place: int) -> None:
        """Everything below `place` stands."""
        place = max(place, self.settled)
        self.states, self.settled = self.states[:, place - self.settled :].clone(), place


class MultiTokenProposer:
    """What the model's own multi-token modules predict after the newest token (DeepSeek-V3, arXiv:2412.19437).

        the model has run            t0   t1   t2                  and drew t3 from h2
        depth 1, place i:            h_i and t_(i+1)               at place 2 guesses t4 from h2, t3
        depth 2, place i:            depth 1's state and t_(i+2)   at place 2 guesses t5 from its state, t4

    The engine hands over what the head read of each token (`observe`), and each depth has a cache of its own, so a
    guess costs one pass of one block over the tokens since the last time, and the head. Entries that were made from
    guesses are made again. Where a beginning was found in the prefix cache, modules know only what came after it.

    Raises ValueError for a model without such modules.
    """

    def __init__(self, model: Transformer) -> None:
        if model.multi_token is None:
            raise ValueError("this model has no multi-token modules: train it with `multi_token` in its config")
        self.model = model
        self.depths: list[Any] = list(model.multi_token.depths)
        self._heads: WeakKeyDictionary[Any, _Heads] = WeakKeyDictionary()

    def observe(self, request: Guessing, start: int, states: Float[Tensor, "seq d_model"]) -> None:
        """What the model's head read at the places from `start` on, of tokens that stand."""
        heads = self._heads.get(request)
        if heads is None or start > heads.end:
            self._heads[request] = _Heads(start, len(self.depths), states)
        elif start + len(states) > heads.end:  # after a preemption, some are computed again
            heads.states = torch.cat([heads.states, states[None, heads.end - start :]], 1)

    @torch.no_grad()
    def propose(self, request: Guessing, count: int) -> list[int]:
        """At most `count` tokens, and at most as many as the model has modules."""
        heads, newest = self._heads.get(request), len(request.ids) - 1
        if heads is None or heads.end != newest or not newest:
            return []
        hidden, first = heads.states, heads.settled
        positions = torch.arange(first, newest, device=hidden.device)[None]
        told = request.ids[first + 1 :]
        guesses: list[int] = []
        for k, (depth, cache) in enumerate(zip(self.depths[:count], heads.caches, strict=False)):
            if cache.length < first - heads.begin:
                break  # fewer guesses were asked for before, and this depth has not seen what it needs
            cache.crop(first - heads.begin)
            tokens = torch.tensor([told[k:]], device=hidden.device)
            layout = self.model.layout(tokens, positions)
            hidden, state = depth(hidden, self.model.embed_tokens(tokens, layout), layout, cache)
            guesses.append(int(self.model.logits(state[:, -1]).argmax(-1)))
            told = [*told, guesses[-1]]
        heads.settle(newest - len(self.depths) + 1)
        return guesses
