"""The engine's loop: requests in at any time, one forward pass per step, tokens out.

    submit -> waiting -> running -> finished             step:  draft -> schedule -> run -> choose -> outputs
                  ^---- preempted

What one request does wrong ends that request. A pass that raises is run again span by span, which finds the culprit and
gives the others what they would have had; the same holds for choosing tokens.
"""

import logging
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.inference.batch_cache import is_recurrent, reach
from groundup.inference.choosing import Chosen, choose, chosen, takes_most_likely
from groundup.inference.drafting import Drafting, Proposer
from groundup.inference.execution import DecoderBuilder, Execution
from groundup.inference.pages import Pages
from groundup.inference.request import EngineStats, Output, Request
from groundup.inference.scheduler import Scheduler, Work, pages_at_once
from groundup.inference.sequence import FinishReason
from groundup.model import Transformer

log = logging.getLogger(__name__)

NO_LOGITS = torch.empty(0)
CACHE_BYTES = 4 * 2**30
"""Size of the page store where `cache_tokens` does not say otherwise; never less than one full context."""


class Core:
    """Runs requests over one page store, which is made when the first request comes.

    Whenever the engine was idle, it is looked at whether the model has moved, computes in another type or has new
    weights: nothing of the old ones is remembered.
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
        self.model, self.vocab_size, self.batch_invariant = model, vocab_size, batch_invariant
        self.drafting = self._new_drafting(proposer, draft_tokens)
        self.execution = Execution(
            model, dtype=dtype, cache_format=cache_format, batch_invariant=batch_invariant, decoder=decoder,
            keeps_states=self.drafting is not None and self.drafting.observe is not None,
        )  # fmt: skip
        self.batch_size, self.page_size, self.step_tokens = batch_size, page_size, step_tokens
        self.row_pages = -(-context_length // page_size)
        self.num_pages = self._default_pages() if cache_tokens is None else cache_tokens // page_size
        self.reach = reach(model.config)
        self.share = prefix_cache and not is_recurrent(model.config)
        self._ready: list[Output] = []
        self._steps = self._generated = self._submitted = 0
        self._ended: Counter[FinishReason] = Counter()
        self.pages = Pages(self.num_pages, page_size, self.share)
        self.scheduler: Scheduler | None = None
        self._past = (0, 0, 0)

    def _new_drafting(self, proposer: Proposer | None, count: int) -> Drafting | None:
        if proposer is None:
            return None
        if is_recurrent(self.model.config):
            log.info("no speculation: a recurrent state cannot go back behind rejected tokens")
            return None
        drafting = Drafting(proposer, count, self.vocab_size)
        if drafting.observe is not None and self.batch_invariant:
            log.info("no speculation: the proposer needs the model's states, which no pass in fixed tiles keeps")
            return None
        return drafting

    def _default_pages(self) -> int:
        """A full context for every row, as far as `CACHE_BYTES` reach."""
        page_bytes = max(1, self.page_size * self.execution.bytes_per_token)
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
        return getattr(self.execution.fast, "weight_bytes", None)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs, or an output has not been handed out yet."""
        busy = self.scheduler is not None and (self.scheduler.waiting or self.scheduler.running)
        return bool(busy or self._ready)

    def enqueue(self, request: Request) -> None:
        """Let the request wait for its turn, unless it has ended already: it may have no token to make."""
        if request.finish_reason is not None:
            self._ended[request.finish_reason] += 1
        else:
            if self.scheduler is None or not (self.scheduler.waiting or self.scheduler.running):
                self._refresh()
            assert self.scheduler is not None
            self.scheduler.add(request)
        self._submitted += 1

    def report(self, *outputs: Output) -> None:
        """Have the next step hand these out."""
        self._ready.extend(outputs)

    def abort(self, request: Request) -> None:
        """End the request; its pages are free at once. Nothing happens to one that has ended."""
        if request.finish_reason is None:
            request.end("abort")
            self._ended["abort"] += 1
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
        failed = [] if self.drafting is None else self._draft(self.drafting, self.scheduler)
        work = self.scheduler.schedule()
        return [*outputs, *self._take(work, self._run(work)), *failed]

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
            requests_submitted=self._submitted,
            requests_ended=dict(self._ended),
            drafted_tokens=self.drafting.drafted if self.drafting else 0,
            accepted_tokens=self.drafting.accepted if self.drafting else 0,
        )

    # -- one step ------------------------------------------------------------------------------------------------------

    def _draft(self, drafting: Drafting, scheduler: Scheduler) -> list[Output]:
        """Guesses for all that decode; outputs of those for which the proposer raises."""
        for request in scheduler.running:
            request.draft = []
            if request.pending == 1:
                try:
                    with self.execution.as_for_inference():
                        request.draft = drafting.propose(request)
                except Exception as failure:
                    request.fail(failure)
        failed = [request for request in scheduler.running if request.failure is not None]
        for request in failed:
            scheduler.remove(request)
        return [self._output(request, request.release(), [], []) for request in failed]

    def _run(self, work: list[Work]) -> list[Tensor | Chosen | Exception]:
        """What each span gives: its logits, or the token itself where nobody asks for more than the most likely."""
        spans = [each.span for each in work]
        if all(span.wanted <= 1 and takes_most_likely(each.request) for span, each in zip(spans, work, strict=True)):
            found = self.execution.most_likely(spans, self.vocab_size)
            if found is not None:
                tokens = iter(found)
                return [chosen(next(tokens)) if span.wanted else NO_LOGITS for span in spans]
        return [*self.execution.run(spans)]

    def _take(self, work: list[Work], results: list[Tensor | Chosen | Exception]) -> list[Output]:
        """Choose tokens from the logits, hand them to their requests, and say what came of it."""
        plain = [i for i, each in enumerate(work) if each.span.wanted == 1 and isinstance(results[i], Tensor)]
        picked: dict[int, Chosen | Exception] = {}
        if plain:
            rows = _joined([r for i in plain if isinstance(r := results[i], Tensor)])
            self._mask_padding(rows)
            picks = choose(rows, [work[i].request for i in plain], self.batch_invariant)
            picked = dict(zip(plain, picks, strict=True))
        return [
            output
            for i, (each, result) in enumerate(zip(work, results, strict=True))
            if (output := self._apply(each, picked.get(i, result))) is not None
        ]

    def _apply(self, work: Work, result: Chosen | Tensor | Exception) -> Output | None:
        request, scheduler = work.request, self.scheduler
        assert scheduler is not None
        before, pieces = len(request.tokens), list[str]()
        try:
            if isinstance(result, Exception):
                raise result
            if isinstance(result, Chosen):
                pieces.append(request.push(*result))
            elif len(result):
                assert self.drafting is not None
                self._mask_padding(result)
                for piece in self.drafting.verify(request, work.span.tokens[work.known :], result):
                    pieces.append(piece)  # one by one: what stands is told also where the next token fails
            scheduler.advance(request, work.known + max(0, len(request.tokens) - before - 1))
            self._observe(work)
        except Exception as failure:
            request.fail(failure)
            pieces.append(request.release())
        if request.finish_reason is not None:
            scheduler.remove(request)
        elif work.span.wanted > 1:
            scheduler.crop(request)
        if not work.span.wanted and request.finish_reason is None:
            return None
        return self._output(request, "".join(pieces), request.tokens[before:], request.logprobs[before:])

    def _observe(self, work: Work) -> None:
        """Tell the proposer what the head read of the tokens that stand, if it wants to know."""
        states = self.execution.states(work.span.slot)
        if states is not None and self.drafting is not None and self.drafting.observe is not None:
            start = work.span.start
            self.drafting.observe(work.request, start, states[: work.request.computed - start])

    def _mask_padding(self, logits: Float[Tensor, "batch vocab"]) -> None:
        """Rows of a padded vocabulary have no text."""
        if logits.shape[1] > self.vocab_size:
            logits[:, self.vocab_size :] = -torch.inf

    def _output(self, request: Request, text: str, tokens: list[int], logprobs: list[Any]) -> Output:
        self._generated += len(tokens)
        if request.finish_reason is not None:
            self._ended[request.finish_reason] += 1
        return Output(request, text, tokens, logprobs, request.finish_reason, request.error)

    def _refresh(self) -> None:
        """Have all parts fit the model as it is now."""
        renewed = self.execution.refresh(self.num_pages, self.page_size, self.batch_size, self.row_pages)
        if renewed == "store":
            self._past = tuple(a + b for a, b in zip(self._past, _counts(self.scheduler), strict=True))  # type: ignore
            self.pages = Pages(self.num_pages, self.page_size, self.share)
            self.scheduler = Scheduler(self.pages, self.execution.store, self.step_tokens, self.reach)
        if renewed:
            self.forget()


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
