"""Generating text: prompts in, completions out, in batches, with every token computed once.

A batch holds prompts of different lengths without left-padding: positions are given per row, and the padding
after a short prompt has position -1, which no query sees. So a row's logits are those that it has alone.
"""

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.config import nearest
from groundup.device import default_device, require_device
from groundup.inference.sampling import SamplingParams, TokenLogprob, sample, token_logprobs
from groundup.inference.sequence import Completion, Sequence
from groundup.model import Cache, EncoderDecoder, Transformer
from groundup.model.pretrained import load_pretrained, read_end_ids
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import CONTROL_TOKENS, END_TOKENS, render
from groundup.tokenizer.template import ChatTemplate, load_template

Prompt = str | Items[int]

PREFILL_CHUNK = 1024  # prompt tokens per row and forward pass: bounds the memory that a long prompt takes
RESERVED = 256  # new tokens per row that a cache has room for at first; it grows when they are used up


class Engine:
    """Answers prompts with a model and its tokenizer.

    The model is left as it was: its train mode and compute type are put back after every step, so an engine
    can sample from a model in training. `device` moves the model; `dtype` is the activations' type while
    generating (the model's own by default). At most `batch_size` prompts run at once. A model of others brings its
    own `chat_template`, and `end_ids` that end a text or a turn besides the tokens of `chat.END_TOKENS`.
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
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; expected at least 1")
        self.model = model if device is None else model.to(device)
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.batch_size = batch_size
        self.end_ids = {tokenizer.special_tokens[t] for t in END_TOKENS if t in tokenizer.special_tokens}
        self.end_ids |= set(end_ids)
        self.chat_template = chat_template

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
        sequences = [self._sequence(p, s) for p, s in zip(batch, settings, strict=True)]
        by_length = sorted(sequences, key=lambda s: len(s.prompt))  # similar lengths together: less padding
        for start in range(0, len(by_length), self.batch_size):
            for _ in self._run(by_length[start : start + self.batch_size]):
                pass
        completions = [sequence.completion() for sequence in sequences]
        return completions[0] if single else completions

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any
    ) -> Generator[str, None, Completion]:
        """The answer's text in pieces of whole characters, as it is made.

        The generator's return value is the Completion: `completion = yield from engine.stream(...)`.
        """
        sequence = self._sequence(prompt, _settings(params, overrides, 1)[0])
        return self._stream(sequence)

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

    def _sequence(self, prompt: Prompt, params: SamplingParams) -> Sequence:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        ids = ids or [self.tokenizer.end_of_text]
        vocab, context = self.model.config.vocab_size, self.context_length
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise ValueError(f"prompt: id {wrong} is not in the vocabulary (0 to {vocab - 1})")
        if len(ids) > context:
            raise ValueError(f"prompt: {len(ids)} tokens do not fit the model's context of {context}")
        return Sequence(ids, params, self.tokenizer.stream(), self.end_ids, context - len(ids))

    def _stream(self, sequence: Sequence) -> Generator[str, None, Completion]:
        for pieces in self._run([sequence]):
            if pieces[0]:
                yield pieces[0]
        return sequence.completion()

    def _run(self, sequences: list[Sequence]) -> Iterator[list[str]]:
        """One more token for every sequence per iteration, yielding each row's new text, until all end."""
        if all(s.finish_reason for s in sequences):
            return
        longest = max(len(s.prompt) for s in sequences)
        reserve = longest + min(max(s.limit for s in sequences), RESERVED)
        caches = self.model.new_caches(reserve)
        logits = self._prefill(sequences, caches)
        while True:
            yield self._choose(sequences, logits)
            if all(s.finish_reason for s in sequences):
                return
            logits = self._decode(sequences, caches)

    def _choose(self, sequences: list[Sequence], logits: Float[Tensor, "batch vocab"]) -> list[str]:
        """Sample a token for each unfinished row and hand it to its sequence."""
        live = [i for i, s in enumerate(sequences) if not s.finish_reason]
        logits = logits[torch.tensor(live, device=logits.device)]
        logits[:, self.tokenizer.vocab_size :] = -torch.inf  # rows of a padded vocabulary have no text
        rows = [sequences[i] for i in live]
        tokens = sample(logits, [s.params for s in rows], [s.generator for s in rows])
        count = max(s.params.logprobs for s in rows)
        entries = token_logprobs(logits, tokens, count) if count else [None] * len(rows)
        pieces = [""] * len(sequences)
        for i, token, entry in zip(live, tokens.tolist(), entries, strict=True):
            pieces[i] = sequences[i].push(token, _trimmed(entry, sequences[i].params.logprobs))
        return pieces

    def _prefill(self, sequences: list[Sequence], caches: list[Cache]) -> Float[Tensor, "batch vocab"]:
        """Run all prompts through the model, in chunks; each row's logits after its last token."""
        tokens, positions = _padded([s.prompt for s in sequences], self.model.device)
        last = (positions >= 0).sum(1) - 1
        rows = torch.arange(len(sequences), device=last.device)
        # Rows of one length need no explicit positions, which lets attention take its plain causal path.
        equal = all(len(s.prompt) == len(sequences[0].prompt) for s in sequences)
        ends = []
        for start in range(0, tokens.shape[1], PREFILL_CHUNK):
            chunk = slice(start, start + PREFILL_CHUNK)
            hidden = self._hidden(tokens[:, chunk], None if equal else positions[:, chunk], caches)
            ends.append(hidden[rows, (last - start).clamp(0, hidden.shape[1] - 1)])
        return self._logits(torch.stack(ends)[last // PREFILL_CHUNK, rows])

    def _decode(self, sequences: list[Sequence], caches: list[Cache]) -> Float[Tensor, "batch vocab"]:
        """Run the newest token of each row. A finished row runs along as padding."""
        tokens = [[0 if s.finish_reason else s.tokens[-1]] for s in sequences]
        positions = [[-1 if s.finish_reason else len(s.prompt) + len(s.tokens) - 1] for s in sequences]
        device = self.model.device
        hidden = self._hidden(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), caches)
        return self._logits(hidden[:, 0])

    @torch.no_grad()  # not inference_mode: a table that a layer keeps must stay usable for training
    def _hidden(
        self,
        tokens: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "batch seq"] | None,
        caches: list[Cache],
    ) -> Float[Tensor, "batch seq d_model"]:
        with self._as_for_inference():
            return self.model.hidden(tokens, positions, caches)

    @torch.no_grad()
    def _logits(self, hidden: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
        return self.model.logits(hidden)

    @contextlib.contextmanager
    def _as_for_inference(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        dtype = self.model.compute_dtype
        try:
            for module in training:
                module.training = False
            self.model.compute_dtype = dtype if self.dtype is None else self.dtype
            yield
        finally:
            self.model.compute_dtype = dtype
            for module in training:
                module.training = True


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


def _trimmed(entry: TokenLogprob | None, count: int) -> TokenLogprob | None:
    return entry._replace(top=entry.top[:count]) if entry and count else None


def _padded(
    prompts: list[list[int]], device: torch.device
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    positions = torch.full((len(prompts), longest), -1)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
        positions[row, : len(prompt)] = torch.arange(len(prompt))
    return tokens.to(device), positions.to(device)
