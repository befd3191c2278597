"""Generating text: prompts in, completions out, as many at once as there are pages, every token computed once.

Two ways in. `generate`, `stream` and `chat` answer at once. `submit`, `step` and `abort` are for a server: requests
come and go at any time, and each step advances all of them. Both run on one `Core` and may be mixed.
"""

import contextlib
import itertools
from collections.abc import Collection, Generator, Mapping
from collections.abc import Sequence as Items
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

import torch

from groundup.config import nearest
from groundup.device import default_device, require_device
from groundup.inference.adjust import check_biases
from groundup.inference.core import Core
from groundup.inference.drafting import Proposer
from groundup.inference.execution import DecoderBuilder
from groundup.inference.request import Constraint, EngineStats, Output, Request
from groundup.inference.sampling import SamplingParams
from groundup.inference.sequence import Completion
from groundup.model import EncoderDecoder, Transformer
from groundup.model.pretrained import load_pretrained, read_end_ids
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import CONTROL_TOKENS, END_TOKENS, render
from groundup.tokenizer.template import ChatTemplate, load_template

Prompt = str | Items[int]

PREFILL_CHUNK = 1024
"""Tokens per step where `step_tokens` does not say otherwise: bounds the memory that long prompts take."""


class Engine:
    """Answers prompts with a model and its tokenizer.

    The model is left as it was: its train mode and compute type are put back after every step, so an engine
    can sample from a model in training. `device` moves the model; `dtype` is the activations' type while
    generating (the model's own by default). A model of others brings its own `chat_template`, and `end_ids` that end
    a text or a turn besides the tokens of `chat.END_TOKENS`.

    batch_size       at most so many requests run at once; others wait
    cache_tokens     tokens that the page store holds, in pages of `page_size`; by default a context per request, as
                     far as `core.CACHE_BYTES` reach
    step_tokens      a step computes at most so many; long prompts are cut, so that others go on meanwhile
    prefix_cache     take up pages of a beginning that was computed before; models with a recurrent state cannot
    batch_invariant  bit for bit the same answer whatever else runs, however prompts are cut or cached; slower, as
                     each sequence runs by itself
    proposer         guesses `draft_tokens` tokens that one pass verifies; answers stay what they are without
    decoder          makes a faster runner for decoding, or refuses with a reason that is logged once
    cache_format     "int8" or "fp8" keeps keys and values in eight bits (see `quantized_pages`), through torch; by
                     default they are kept in the activations' type
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        batch_size: int = 32,
        chat_template: ChatTemplate | None = None,
        end_ids: Collection[int] = (),
        cache_tokens: int | None = None,
        page_size: int = 16,
        step_tokens: int | None = None,
        prefix_cache: bool = True,
        batch_invariant: bool = False,
        proposer: Proposer | None = None,
        draft_tokens: int = 4,
        decoder: DecoderBuilder | None = None,
        cache_format: str | None = None,
    ) -> None:
        if isinstance(model, EncoderDecoder):
            raise ValueError("engine: an EncoderDecoder answers a source, and a prompt is none; call its `generate`")
        vocab = model.config.vocab_size
        if not model.config.causal:
            raise ValueError(
                "engine: a layer of this model has causal=False and looks ahead, so it fills in masked tokens and does "
                "not generate; give a model whose layers are causal"
            )
        if tokenizer.vocab_size > vocab:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model only {vocab}: "
                "they do not belong together"
            )
        self.model = model if device is None else model.to(device)
        self.tokenizer = tokenizer
        self.end_ids = {tokenizer.special_tokens[t] for t in END_TOKENS if t in tokenizer.special_tokens}
        self.end_ids |= set(end_ids)
        self.chat_template = chat_template
        self._numbers = itertools.count()
        self._own: set[int] = set()  # requests of `generate` and `stream`, which read them without outputs
        self.core = Core(
            self.model, tokenizer.vocab_size, self.context_length,
            dtype=dtype, batch_size=batch_size, cache_tokens=cache_tokens, page_size=page_size,
            step_tokens=PREFILL_CHUNK if step_tokens is None else step_tokens, prefix_cache=prefix_cache,
            batch_invariant=batch_invariant, proposer=proposer, draft_tokens=draft_tokens, decoder=decoder,
            cache_format=cache_format,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> "Engine":
        """The engine of a model folder in Hugging Face layout, on `device` (default: the fastest here).

        Raises ValueError when there is no such folder, or what it holds is damaged or not supported.
        """
        target = default_device() if device is None else require_device(str(device))
        model = load_pretrained(path)
        tokenizer = Tokenizer.load(path)
        ours = all(token in tokenizer.special_tokens for token in CONTROL_TOKENS)
        template = None if ours else load_template(path)
        return cls(model.eval(), tokenizer, target, chat_template=template, end_ids=read_end_ids(path))

    @property
    def context_length(self) -> int:
        """Prompt and answer together never have more tokens than this."""
        config = self.model.config
        return min(config.context_length, getattr(config.positions, "max_length", config.context_length))

    @overload
    def generate(
        self, prompts: str | list[int], params: SamplingParams | None = None, **overrides: Any
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: Items[str] | Items[Items[int]],
        params: SamplingParams | Items[SamplingParams] | None = None,
        **overrides: Any,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: Prompt | Items[Prompt],
        params: SamplingParams | Items[SamplingParams] | None = None,
        **overrides: Any,
    ) -> Completion | list[Completion]:
        """The Completion of one prompt (a text or ids), or the list of those of several.

        `params` holds for all prompts, or is a list with one per prompt; `overrides` are fields of
        SamplingParams. Prompts that share a seed draw the same random numbers. An empty prompt starts from
        <|endoftext|>. Text that spells a special token stays text; pass ids to use one.

        Raises ValueError for a prompt longer than the context, an id that the model has not, and parameters
        that make no sense.
        """
        single = _is_single(prompts)
        batch: list[Any] = [prompts] if single else list(prompts)
        settings = _settings(params, overrides, len(batch))
        requests = [self._request(p, s) for p, s in zip(batch, settings, strict=True)]
        self._finish(requests)
        completions = [request.completion() for request in requests]
        return completions[0] if single else completions

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any
    ) -> Generator[str, None, Completion]:
        """The answer's text in pieces of whole characters, as it is made.

        The generator's return value is the Completion: `completion = yield from engine.stream(...)`.
        """
        return self._stream(self._request(prompt, _settings(params, overrides, 1)[0]))

    def chat(
        self, messages: Items[Mapping[str, str]], params: SamplingParams | None = None, **overrides: Any
    ) -> Completion:
        """The assistant's next turn in a conversation of {"role": ..., "content": ...} messages."""
        return self.generate(self.chat_prompt(messages), params, **overrides)

    def stream_chat(
        self, messages: Items[Mapping[str, str]], params: SamplingParams | None = None, **overrides: Any
    ) -> Generator[str, None, Completion]:
        """`chat`, in pieces as from `stream`."""
        return self.stream(self.chat_prompt(messages), params, **overrides)

    def chat_prompt(self, messages: Items[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation, up to where the assistant speaks."""
        if self.chat_template is not None:
            return self.chat_template.encode(self.tokenizer, messages)
        return render(self.tokenizer, messages, add_generation_prompt=True)[0]

    @property
    def can_chat(self) -> bool:
        """Whether conversations have a form here: the model's own template, or our control tokens."""
        return self.chat_template is not None or all(t in self.tokenizer.special_tokens for t in CONTROL_TOKENS)

    def samples(
        self, prompt: Prompt, n: int, params: SamplingParams | None = None, **overrides: Any
    ) -> list[Completion]:
        """`n` answers to one prompt, whose full pages are computed once; with a seed, seed + i is the i-th one's."""
        if n < 1:
            raise ValueError(f"n={n}; expected at least 1")
        settings = _settings(params, overrides, 1)[0]
        seeds = [None if settings.seed is None else (settings.seed + i) % 2**63 for i in range(n)]
        requests = [self._request(prompt, replace(settings, seed=seed)) for seed in seeds]
        self._finish(requests)
        return [request.completion() for request in requests]

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        salt: str = "",
        constraint: Constraint | None = None,
    ) -> Request:
        """Let a request wait; calls of `step` answer it. To be called between steps, not during one.

        Requests share the pages of a common beginning if they have the same `salt`. Raises ValueError for what can
        never run: a prompt longer than the context or than all pages, an id that the model has not. A limit beyond
        the context means "until the context is full".
        """
        request = self._request(prompt, params or SamplingParams(), salt, constraint)
        self.core.enqueue(request)
        if request.finish_reason is not None:
            self.core.report(Output(request, "", [], [], request.finish_reason))
        return request

    def step(self) -> list[Output]:
        """One forward pass over what is due; an output per request that got tokens or ended.

        Raises for nothing that is in a request: what one does wrong ends it with the reason "error".
        """
        return [output for output in self.core.step() if output.request.id not in self._own]

    def abort(self, request: Request) -> None:
        """End a request; its pages are free at once, and no output follows. One that has ended stays as it is."""
        self.core.abort(request)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs, or an output has not been handed out yet."""
        return self.core.has_work

    def stats(self) -> EngineStats:
        """How busy the engine is, and what it has done."""
        return self.core.stats()

    def _request(
        self, prompt: Prompt, params: SamplingParams, salt: str = "", constraint: Constraint | None = None
    ) -> Request:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        ids = ids or [self.tokenizer.end_of_text]
        vocab, context, capacity = self.model.config.vocab_size, self.context_length, self.core.capacity
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise ValueError(f"prompt: id {wrong} is not in the vocabulary (0 to {vocab - 1})")
        if len(ids) > context:
            raise ValueError(f"prompt: {len(ids)} tokens do not fit the model's context of {context}")
        if len(ids) > capacity:
            raise ValueError(
                f"prompt: {len(ids)} tokens do not fit the cache of {capacity}; raise the engine's cache_tokens"
            )
        if not isinstance(salt, str):
            raise ValueError(f"salt={salt!r:.80}; expected a text")
        check_biases(params, self.tokenizer.vocab_size)
        room = min(context - len(ids), capacity - len(ids) + 1)  # the last token is not computed
        number = next(self._numbers)
        return Request(number, ids, params, self.tokenizer.stream(), self.end_ids, room, salt, constraint)

    def _stream(self, request: Request) -> Generator[str, None, Completion]:
        shown = 0
        with contextlib.closing(self._steps([request])) as steps:
            for _ in itertools.chain(steps, [None]):  # once more for what steps for others made meanwhile
                while shown < len(request.pieces):
                    shown += 1
                    if request.pieces[shown - 1]:
                        yield request.pieces[shown - 1]
        return request.completion()

    def _finish(self, requests: list[Request]) -> None:
        for _ in self._steps(requests):
            pass

    def _steps(self, requests: list[Request]) -> Generator[None, None, None]:
        """Steps until these requests are answered; what others get is kept for their next `step`."""
        mine = {request.id for request in requests}
        self._own |= mine
        try:
            for request in requests:
                self.core.enqueue(request)
            while any(request.finish_reason is None for request in requests):
                self.core.report(*self.step())
                yield
        finally:
            self._own -= mine
            for request in requests:
                self.core.abort(request)
        failure = next((request.failure for request in requests if request.failure is not None), None)
        if failure is not None:
            raise failure


def _is_single(prompts: Any) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and all(isinstance(item, int) for item in prompts))


def _settings(params: Any, overrides: dict[str, Any], count: int) -> list[SamplingParams]:
    known = [field.name for field in fields(SamplingParams)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"{name}: no such sampling parameter{nearest(name, known)}")
    each = [params] * count if params is None or isinstance(params, SamplingParams) else list(params)
    if len(each) != count:
        raise ValueError(f"params: {len(each)} for {count} prompts; expected one, or one per prompt")
    return [replace(p or SamplingParams(), **overrides) for p in each]
