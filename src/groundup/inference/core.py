"""The engine's loop: requests in at any time, one forward pass per step, tokens out.

    submit -> waiting -> running -> finished             step:  draft -> schedule -> run -> choose -> outputs
                  ^---- preempted

What one request does wrong ends that request. A pass that raises is run again span by span, which finds the culprit and
gives the others what they would have had; the same holds for choosing tokens.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.inference.batch_cache import PageStore, bytes_per_token, is_recurrent, reach
from groundup.inference.choosing import Chosen, choose
from groundup.inference.graphs import GraphRunner
from groundup.inference.pages import Pages
from groundup.inference.quantized_pages import QuantizedPageStore, check_format, quantized_bytes_per_token
from groundup.inference.request import EngineStats, Output, Request
from groundup.inference.runner import InvariantRunner, Runner, Span, TorchRunner
from groundup.inference.scheduler import Scheduler, Work, pages_at_once
from groundup.model import Transformer

log = logging.getLogger(__name__)

CACHE_BYTES = 4 * 2**30
"""Size of the page store where `cache_tokens` does not say otherwise; never less than one full context."""

WATCHED = 16
"""Parameters of which a few numbers are compared, to notice new weights."""


class Proposer(Protocol):
    """Guesses up to `count` next tokens of a request, to be verified in one pass.

    One with a method `observe(request, start, states)` is also given what the model's head read of each token that
    stands, the first at place `start`. Passes then run through torch, where those states are at hand.
    """

    def propose(self, request: Request, count: int) -> list[int]: ...


Observer = Callable[[Request, int, Tensor], None]

DecoderBuilder = Callable[[Transformer, PageStore], Any]
"""Makes a `Runner` for spans of one token, or an object with the `reason` why it does not.

Where none is given, steps are recorded on a GPU, see `graphs`. A runner with `takes_prompts` true gets all spans, and
has weights of its own: nobody tells the modules that it is inference. One with `batch_invariant` true as well promises
that a token's logits depend on nothing but the tokens before it, bit for bit.
"""


class Core:
    """Runs requests over one page store. Its parts are made when the first request comes.

    They are made again when the model has moved, computes in another type or has new weights, which is looked at
    whenever the engine was idle: nothing of the old weights is remembered.
    """

    def __init__(
        self,
        model: Transformer,
        vocab_size: int,
        context_length: int,
        *,
        dtype: torch.dtype | None,
        batch_size: int,
        cache_tokens: int | None,
        page_size: int,
        step_tokens: int,
        prefix_cache: bool,
        batch_invariant: bool,
        proposer: Proposer | None,
        draft_tokens: int,
        decoder: DecoderBuilder | None,
        cache_format: str | None = None,
    ) -> None:
        given = {"batch_size": batch_size, "page_size": page_size, "step_tokens": step_tokens}
        for name, value in {**given, "draft_tokens": draft_tokens}.items():
            if value < 1:
                raise ValueError(f"{name}={value}; expected at least 1")
        if cache_tokens is not None and cache_tokens < page_size:
            raise ValueError(f"cache_tokens={cache_tokens}; expected at least one page of {page_size} tokens")
        if cache_format is not None:
            check_format(cache_format)
        self.model, self.vocab_size, self.dtype, self.cache_format = model, vocab_size, dtype, cache_format
        self.batch_size, self.page_size, self.step_tokens = batch_size, page_size, step_tokens
        self.row_pages = -(-context_length // page_size)
        self.num_pages = self._default_pages() if cache_tokens is None else cache_tokens // page_size
        self.reach = reach(model.config)
        recurrent = is_recurrent(model.config)
        self.share = prefix_cache and not recurrent
        self.batch_invariant = batch_invariant
        self.proposer, self.draft_tokens, self.decoder = proposer, draft_tokens, decoder
        if proposer is not None and recurrent:
            log.info("no speculation: a recurrent state cannot go back behind rejected tokens")
            self.proposer = None
        self.observe: Observer | None = getattr(self.proposer, "observe", None)
        if self.observe is not None and batch_invariant:
            log.info("no speculation: the proposer needs the model's states, which no pass in fixed tiles keeps")
            self.proposer = self.observe = None
        self._ready: list[Output] = []
        self._weights: tuple[Any, ...] | None = None
        self._steps = self._generated = self._finished = self._failed = self._aborted = 0
        self._drafted = self._accepted = 0
        self.pages = Pages(self.num_pages, page_size, self.share)
        self.scheduler: Scheduler | None = None
        self._past = (0, 0, 0)

    def _default_pages(self) -> int:
        """A full context for every row, as far as `CACHE_BYTES` reach."""
        dtype = self.model.compute_dtype if self.dtype is None else self.dtype
        config = self.model.config
        per_token = bytes_per_token(config, dtype) if self.cache_format is None else quantized_bytes_per_token(config)
        page_bytes = max(1, self.page_size * per_token)
        return min(self.batch_size * self.row_pages, max(self.row_pages, CACHE_BYTES // page_bytes))

    @property
    def capacity(self) -> int:
        """The most tokens of one sequence that pages allow; where every layer has a window, more than they hold."""
        if self.num_pages >= pages_at_once(
            self.row_pages * self.page_size, self.page_size, self.step_tokens, self.reach
        ):
            return self.row_pages * self.page_size
        return self.num_pages * self.page_size

    @property
    def weight_bytes(self) -> int | None:
        """Of the weights that the decoder's step reads; None while steps go through torch."""
        return getattr(getattr(self, "_fast", None), "weight_bytes", None)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs, or an output has not been handed out yet."""
        busy = self.scheduler is not None and (self.scheduler.waiting or self.scheduler.running)
        return bool(busy or self._ready)

    def enqueue(self, request: Request) -> None:
        """Let the request wait for its turn; it has a token to make."""
        if self.scheduler is None or not (self.scheduler.waiting or self.scheduler.running):
            self._refresh()
        assert self.scheduler is not None
        self.scheduler.add(request)

    def report(self, *outputs: Output) -> None:
        """Have the next step hand these out."""
        self._ready.extend(outputs)

    def abort(self, request: Request) -> None:
        """End the request; its pages are free at once. Nothing happens to one that has ended."""
        if request.finish_reason is None:
            request.end("abort")
            self._aborted += 1
            if self.scheduler is not None:
                self.scheduler.remove(request)

    def forget(self) -> None:
        """Know no prefix any more."""
        self.pages.forget_all()

    def step(self) -> list[Output]:
        """Run the scheduled spans once. Raises for nothing that is in a request."""
        outputs, self._ready = self._ready, []
        if self.scheduler is None or not (self.scheduler.waiting or self.scheduler.running):
            return outputs
        self._steps += 1
        self._draft(self.scheduler)
        work = self.scheduler.schedule()
        results = self._run([each.span for each in work])
        outputs += self._take(work, results)
        return [*outputs, *self._failures()]

    def stats(self) -> EngineStats:
        """Counts as of now."""
        scheduler, past = self.scheduler, self._past
        now = _counts(scheduler)
        return EngineStats(
            waiting=len(scheduler.waiting) if scheduler else 0,
            running=len(scheduler.running) if scheduler else 0,
            pages_total=self.num_pages,
            pages_used=self.pages.used,
            pages_cached=self.pages.cached,
            prompt_tokens=past[0] + now[0],
            cached_prompt_tokens=past[1] + now[1],
            generated_tokens=self._generated,
            preemptions=past[2] + now[2],
            steps=self._steps,
            requests_finished=self._finished,
            requests_failed=self._failed,
            requests_aborted=self._aborted,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    # -- one step ------------------------------------------------------------------------------------------------------

    def _draft(self, scheduler: Scheduler) -> None:
        if self.proposer is None:
            return
        for request in scheduler.running:
            request.draft = []
            if request.pending == 1:
                try:
                    with self._as_for_inference():
                        request.draft = list(self.proposer.propose(request, self.draft_tokens))[: self.draft_tokens]
                except Exception as failure:
                    request.fail(failure)
        for request in [r for r in scheduler.running if r.failure is not None]:
            scheduler.remove(request)
            self._ready.append(self._output(request, "", [], []))

    def _failures(self) -> list[Output]:
        outputs, self._ready = self._ready, []
        return outputs

    def _run(self, spans: list[Span]) -> list[Tensor | Exception]:
        """Each span's logits, or the exception that it caused."""
        try:
            logits = self._logits(spans)
            return list(logits.split([span.wanted for span in spans])) if len(spans) > 1 else [logits]
        except Exception as failure:
            if len(spans) == 1:
                return [failure]
        return [result for span in spans for result in self._run([span])]

    def _logits(self, spans: list[Span]) -> Float[Tensor, "wanted vocab"]:
        """From the decoder, for spans that it takes, and from torch."""
        fast = self._fast_decoder()
        if fast is not None and getattr(fast, "takes_prompts", False):
            return fast.run(spans)
        with self._as_for_inference():
            return self._with_modules(fast, spans)

    def _with_modules(self, fast: Runner | None, spans: list[Span]) -> Float[Tensor, "wanted vocab"]:
        taken = [fast is not None and len(span.tokens) == span.wanted == 1 for span in spans]
        if fast is None or not any(taken):
            return self._runner.run(spans)
        if all(taken):
            return fast.run(spans)
        of_fast = iter(fast.run([s for s, take in zip(spans, taken, strict=True) if take]).split(1))
        others = [s for s, take in zip(spans, taken, strict=True) if not take]
        of_torch = iter(self._runner.run(others).split([s.wanted for s in others]))
        return torch.cat([next(of_fast if take else of_torch) for take in taken])

    def _take(self, work: list[Work], results: list[Tensor | Exception]) -> list[Output]:
        """Choose tokens from the logits, hand them to their requests, and say what came of it."""
        plain = [i for i, each in enumerate(work) if each.span.wanted == 1 and isinstance(results[i], Tensor)]
        chosen: dict[int, Chosen | Exception] = {}
        if plain:
            rows = _joined([r for i in plain if isinstance(r := results[i], Tensor)])
            self._mask_padding(rows)
            picks = choose(rows, [work[i].request for i in plain], self.batch_invariant)
            chosen = dict(zip(plain, picks, strict=True))
        return [
            output
            for i, (each, result) in enumerate(zip(work, results, strict=True))
            if (output := self._apply(each, chosen.get(i, result))) is not None
        ]

    def _apply(self, work: Work, result: Chosen | Tensor | Exception) -> Output | None:
        request, scheduler = work.request, self.scheduler
        assert scheduler is not None
        before, text = len(request.tokens), ""
        try:
            if isinstance(result, Exception):
                raise result
            if isinstance(result, Chosen):
                text = request.push(*result)
            elif len(result):
                text = self._verify(work, result)
            scheduler.advance(request, work.known + max(0, len(request.tokens) - before - 1))
            if self.observe is not None and isinstance(self._runner, TorchRunner):
                start = work.span.start
                self.observe(request, start, self._runner.states[work.span.slot][: request.computed - start])
        except Exception as failure:
            request.fail(failure)
        if request.finish_reason is not None:
            scheduler.remove(request)
        elif work.span.wanted > 1:
            scheduler.crop(request)
        if not work.span.wanted and request.finish_reason is None:
            return None
        return self._output(request, text, request.tokens[before:], request.logprobs[before:])

    def _verify(self, work: Work, logits: Float[Tensor, "wanted vocab"]) -> str:
        """Sample after each drafted token as long as the draft goes on the same way; the text that this makes visible.

        Each token is drawn from the model's own distribution with the request's next random number, so the answer is
        the one without drafts (the case of a draft without probabilities in Leviathan et al. 2022, arXiv:2211.17192).
        """
        request, draft, pieces = work.request, work.span.tokens[work.known :], []
        self._mask_padding(logits)
        self._drafted += len(draft)
        for row, guess in zip(logits, [*draft, None], strict=True):
            (choice,) = choose(row[None], [request])
            if isinstance(choice, Exception):
                raise choice
            pieces.append(request.push(*choice))
            self._accepted += choice.token == guess
            if request.finish_reason is not None or choice.token != guess:
                break
        return "".join(pieces)

    def _mask_padding(self, logits: Float[Tensor, "batch vocab"]) -> None:
        """Rows of a padded vocabulary have no text."""
        if logits.shape[1] > self.vocab_size:
            logits[:, self.vocab_size :] = -torch.inf

    def _output(self, request: Request, text: str, tokens: list[int], logprobs: list[Any]) -> Output:
        self._generated += len(tokens)
        if request.finish_reason == "error":
            self._failed += 1
        elif request.finish_reason is not None:
            self._finished += 1
        return Output(request, text, tokens, logprobs, request.finish_reason, request.error)

    # -- the model -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Make the store and what runs over it, unless those there are still right."""
        weights = self._watch()
        if self._weights is not None and _same(self._weights, weights):
            return
        has_moved = self._weights is None or self._weights[:2] != weights[:2]
        self._weights = weights
        self._modules = list(self.model.modules())
        self._fast: Runner | None = None
        self._asked = False
        if has_moved:
            self._allocate()
        self.forget()

    def _allocate(self) -> None:
        self._past = tuple(a + b for a, b in zip(self._past, _counts(self.scheduler), strict=True))  # type: ignore
        dtype = self.model.compute_dtype if self.dtype is None else self.dtype
        kind = PageStore if self.cache_format is None else partial(QuantizedPageStore, self.cache_format)
        self.store = kind(
            self.model.config, self.num_pages, self.page_size, self.batch_size, self.row_pages, dtype, self.model.device
        )
        self.pages = Pages(self.num_pages, self.page_size, self.share)
        self.scheduler = Scheduler(self.pages, self.store, self.step_tokens, self.reach)
        self._runner = (InvariantRunner if self.batch_invariant else TorchRunner)(self.model, self.store)
        if isinstance(self._runner, TorchRunner):
            self._runner.keeps_states = self.observe is not None

    def _watch(self) -> tuple[Any, ...]:
        """What tells these weights from others: versions, places, and numbers from some of the parameters.

        Versions count writes through torch, and numbers show those of kernels.
        """
        parameters = list(self.model.parameters())
        some = parameters[:: -(-len(parameters) // WATCHED)]
        numbers = torch.cat([p.detach().reshape(-1)[: WATCHED // 2].double() for p in some])
        places = [(p.data_ptr(), p._version) for p in parameters]
        dtype = self.model.compute_dtype if self.dtype is None else self.dtype
        return (self.model.device, dtype, places, numbers)

    def _fast_decoder(self) -> Runner | None:
        builder = self._builder()
        if builder is not None and not self._asked:
            self._asked = True
            with self._as_for_inference():
                built = builder(self.model, self.store)
            if not hasattr(built, "run"):
                log.log(logging.WARNING if self.decoder else logging.INFO, "decoding through torch: %s", built.reason)
            elif self.batch_invariant and not getattr(built, "batch_invariant", False):
                log.warning("decoding through torch: the decoder's rows depend on each other or on torch's prefill")
            else:
                self._fast = built
        return self._fast

    def _builder(self) -> DecoderBuilder | None:
        """What was asked for; on a GPU, unless bits are to be the same in any company, recorded steps. Nothing for a
        proposer that needs the model's states."""
        if self.observe is not None:
            return None
        if self.decoder is None and self.model.device.type == "cuda" and not self.batch_invariant:
            return GraphRunner.build
        return self.decoder

    @contextlib.contextmanager
    def _as_for_inference(self) -> Iterator[None]:
        training = [module for module in self._modules if module.training]
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


def _joined(rows: list[Tensor]) -> Tensor:
    """Rows as one tensor: the one of which they are slices, where they lie one after another, else a copy."""
    first = rows[0]
    if len(rows) == 1:
        return first
    end = first.data_ptr()
    for row in rows:
        if row.data_ptr() != end or not row.is_contiguous():
            return torch.cat(rows)
        end += row.nbytes
    storage = first.untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():
        return torch.cat(rows)
    return first.as_strided((sum(map(len, rows)), first.shape[1]), (first.shape[1], 1))


def _counts(scheduler: Scheduler | None) -> tuple[int, int, int]:
    if scheduler is None:
        return (0, 0, 0)
    return (scheduler.prompt_tokens, scheduler.cached_prompt_tokens, scheduler.preemptions)


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[:3] == b[:3] and torch.equal(a[3], b[3])
