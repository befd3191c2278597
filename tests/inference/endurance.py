"""Random operations on an engine whose model is a checksum of what its pages hold.

The runner here writes tokens into slots and reads each sequence back through its page table, so that a page that is
lost, shared wrongly or given away too early changes the next token. What each request must get is known beforehand.
Where the model has a window, the checksum is that of the tokens that a layer still sees. Some engines have the runner
as a faster decoder beside the usual one, a store in eight bits, or a proposer: one that guesses, n-grams, one with
an engine of its own, or one that is told what the model has read, and compares.
"""

import itertools
import random
import zlib
from collections import Counter

import numpy as np
import torch

from groundup.inference import Engine, SamplingParams
from groundup.inference.batch_cache import Reach, reach
from groundup.inference.request import Request
from groundup.inference.runner import TorchRunner
from groundup.inference.scheduler import GIVEN_BACK, pages_at_once
from groundup.inference.speculative import DraftProposer, NgramProposer
from tests.inference.small import VOCAB, model, tokenizer

POISON = 13
"""The runner raises at this token."""


def next_token(ids) -> int:
    token = zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes()) % VOCAB
    return token + 1 if token == POISON else token


class Drafted(DraftProposer):
    """Drafts of a model, up to the token at which the runner raises."""

    def propose(self, request, count):
        return list(itertools.takewhile(lambda token: token != POISON, super().propose(request, count)))


def visible(ids, look: Reach | None):
    """What the newest of these tokens sees."""
    begin = 0 if look is None else max(0, len(ids) - look.window)
    sinks = 0 if look is None else min(look.sink_tokens, begin)
    return [*ids[:sinks], *ids[begin:]]


class Checksum(TorchRunner):
    """A runner whose next token is a function of the tokens found in the pages. `slots` may be those of another."""

    def __init__(self, store, look: Reach | None, slots=None, takes_prompts: bool = False) -> None:
        super().__init__(model(), store)
        self.look, self.takes_prompts = look, takes_prompts
        self.slots = np.full((store.num_pages + 1) * store.page_size, -1) if slots is None else slots

    def run(self, spans):
        rows = [row for span in spans for row in self._run(span)]
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)

    def _run(self, span):
        size, at = self.store.page_size, np.arange(span.end)
        pages = np.array([self.store.num_pages if page == GIVEN_BACK else page for page in span.pages])
        assert np.array_equal(self.store.tables[span.slot, : len(pages)], pages)
        assert (self.store.tables[span.slot, len(pages) :] == self.store.num_pages).all()
        slots = pages[at // size] * size + at % size
        assert (slots[span.start :] < self.store.num_pages * size).all(), "a token without a page"
        self.slots[slots[span.start :]] = span.tokens
        if POISON in span.tokens:
            raise RuntimeError("poisoned")
        held = self.slots[slots]
        self.states[span.slot] = torch.from_numpy(held[span.start :, None]).double()
        for end in range(span.end - span.wanted + 1, span.end + 1):
            row = torch.zeros(VOCAB)
            row[next_token(visible(held[:end], self.look))] = 1e4
            yield row


class Guesses:
    """Drafts that are right now and then."""

    def __init__(self, rng, look: Reach | None) -> None:
        self.rng, self.look = rng, look

    def propose(self, request, count):
        ids = list(request.ids)
        for _ in range(self.rng.randrange(count + 1)):
            right = self.rng.random() < 0.8
            ids.append(next_token(visible(ids, self.look)) if right else self.rng.randrange(POISON))
        return ids[len(request.ids) :]


class Told(Guesses):
    """Guesses by one who is told what the head read, here the tokens themselves, and keeps it: all that stand, once."""

    def __init__(self, rng, look: Reach | None) -> None:
        super().__init__(rng, look)
        self.heard: dict[int, int] = {}

    def observe(self, request, start, states):
        end = start + len(states)
        assert states[:, 0].tolist() == request.ids[start:end] and end == request.computed
        assert start <= self.heard.get(request.id, start), "tokens that it was not told of"
        self.heard[request.id] = max(end, self.heard.get(request.id, 0))

    def propose(self, request, count):
        assert self.heard[request.id] == len(request.ids) - 1
        return super().propose(request, count)


class Fuzz:
    """An engine, and what every request that it was given must come to."""

    def __init__(self, seed: int, speculate: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        made = model(rng.choice(["gqa", "gqa", "windowed", "sink_tokens"]))
        self.look = reach(made.config)
        self.drafting: Engine | None = None
        proposer = self.new_proposer() if speculate else None
        self.takes = rng.choice([None, None, "prompts", "tokens"])  # of a decoder
        self.engine = Engine(
            made, tokenizer(), batch_size=rng.choice([1, 3, 8, 8]), page_size=rng.choice([1, 2, 4]),
            cache_tokens=rng.choice([16, 48, 64, 100, 400]), step_tokens=rng.choice([1, 7, 30, 200]),
            prefix_cache=rng.random() < 0.8, proposer=proposer, decoder=self.new_decoder if self.takes else None,
            cache_format=rng.choice([None, None, "int8", "fp8"]),
        )  # fmt: skip
        self.core, self.live, self.admitted = self.engine.core, {}, []
        self.expected: dict[int, list[int]] = {}
        self.got: dict[int, list[int]] = {}
        self.counts: Counter[str] = Counter()
        kind = type(proposer).__name__ if proposer else "no proposer"
        for name in (
            kind,
            f"window {self.look is not None}",
            f"decoder {self.takes}",
            self.engine.core.execution.cache_format,
        ):
            self.counts[f"engines, {name}"] += 1
        self.beginnings = [[rng.randrange(POISON) for _ in range(30)] for _ in range(3)]

    def new_proposer(self):
        """Any of four."""
        kind = self.rng.choice(["guesses", "guesses", "n-grams", "engine", "told"])
        if kind == "engine":
            options = {"cache_tokens": self.rng.choice([16, 400]), "page_size": 2}
            self.drafting = Engine(model(), tokenizer(), batch_size=1, **options)
            return Drafted(self.drafting, tokenizer().vocab_size)
        if kind == "n-grams":
            return NgramProposer(self.rng.choice([1, 4]), 1)
        return (Told if kind == "told" else Guesses)(self.rng, self.look)

    def new_decoder(self, _, store):
        """A runner for some of the spans, over the same memory as the other one."""
        self.put_runner()
        return Checksum(store, self.look, self.core.execution.runner.slots, self.takes == "prompts")

    def put_runner(self) -> None:
        """The checksum in place of the model."""
        if not isinstance(self.core.execution.runner, Checksum):
            self.core.execution.runner = Checksum(self.core.execution.store, self.look)

    def operate(self) -> None:
        """One operation, and what must hold after it."""
        kind = self.rng.choices(["submit", "step", "abort"], [3, 9, 1])[0]
        self.counts[kind] += 1
        getattr(self, kind)()
        self.check()

    def submit(self) -> None:
        rng = self.rng
        prompt = rng.choice(self.beginnings)[: rng.choice([0, 3, 8, rng.randrange(31)])] + [
            rng.randrange(VOCAB - 1) for _ in range(rng.randrange(6))
        ]
        if rng.random() < 0.05:
            prompt = prompt + [POISON]
        params = SamplingParams(max_tokens=rng.choice([0, 1, 3, 20, 2**63]), temperature=rng.choice([0, 1.0]))
        if rng.random() < 0.03:
            prompt = prompt * 9 + [1] * 70  # longer than the context
        try:
            request = self.engine.submit(prompt, params, salt=rng.choice(["", "", "ada"]))
        except ValueError as refusal:
            assert len(prompt) > min(64, self.core.capacity), refusal
            self.counts["refused"] += 1
            return
        if self.core.scheduler is not None:
            self.put_runner()
        self.live[request.id], self.got[request.id] = request, []
        self.expected[request.id] = self.foresee(request)

    def foresee(self, request: Request) -> list[int]:
        ids = list(request.prompt)
        while POISON not in ids and len(ids) - len(request.prompt) < request.limit:
            ids.append(next_token(visible(ids, self.look)))
            if ids[-1] in self.engine.end_ids:
                break
        return ids[len(request.prompt) :]

    def step(self) -> None:
        outputs, scheduler = self.engine.step(), self.core.scheduler
        if scheduler is not None:
            order = [request.id for request in [*scheduler.running, *scheduler.waiting]]
            assert order == sorted(order), "somebody was let in before an earlier one"
        for output in outputs:
            self.got[output.request.id] += output.tokens
            if output.finish_reason is not None:
                self.finish(output)

    def finish(self, output) -> None:
        request = self.live.pop(output.request.id)
        assert request.finish_reason == output.finish_reason and not request.pages and request.slot is None
        assert self.got.pop(request.id) == request.tokens == self.expected.pop(request.id)
        assert (output.finish_reason == "error") == (POISON in request.prompt and request.limit > 0)
        assert output.error == ("poisoned" if output.finish_reason == "error" else None)
        self.counts[output.finish_reason] += 1

    def abort(self) -> None:
        if not self.live:
            return
        request = self.rng.choice(list(self.live.values()))
        if request.finish_reason is not None:
            return  # its last output is about to come
        for _ in range(2):
            self.engine.abort(request)
        assert request.finish_reason == "abort" and not request.pages
        done = self.got.pop(request.id)
        assert done == request.tokens == self.expected.pop(request.id)[: len(done)]
        del self.live[request.id]

    def check(self) -> None:
        """References are the holds of running requests; every page is in one place."""
        pages, scheduler = self.core.pages, self.core.scheduler
        if scheduler is None:
            return
        holds = Counter(page for request in scheduler.running for page in request.pages if page != GIVEN_BACK)
        assert [holds[page] for page in range(pages.num_pages)] == pages.references
        places = [*pages._free, *pages._kept, *holds]
        assert len(places) == len(set(places)) == pages.num_pages
        slots = [*scheduler.free_slots, *(request.slot for request in scheduler.running)]
        assert sorted(slots) == list(range(self.core.batch_size))
        assert all(request.slot is None and not request.pages for request in scheduler.waiting)
        if self.look is not None:
            self.check_windows()

    def check_windows(self) -> None:
        """Nobody holds more than a step needs, and what a layer still sees is there."""
        size, core = self.core.page_size, self.core
        at_once = core.step_tokens + (core.drafting.count if core.drafting else 0)
        assert self.look is not None
        for request in core.scheduler.running if core.scheduler is not None else []:
            held = [i for i, page in enumerate(request.pages) if page != GIVEN_BACK]
            assert len(held) <= pages_at_once(64, size, at_once, self.look)
            seen = [*range(min(self.look.sink_tokens, request.computed)),
                    *range(max(0, request.computed - self.look.window + 1), request.computed)]  # fmt: skip
            assert {at // size for at in seen} <= set(held), "a page that is needed was given back"

    def drain(self) -> None:
        """Run to the end: nothing may be left anywhere."""
        steps = 0
        while self.engine.has_work:
            self.step()
            steps += 1
            assert steps < 200_000, "somebody never ends"
        self.check()
        assert not self.live and self.core.pages.used == 0 and set(self.core.pages.references) == {0}
        stats = self.engine.stats()
        assert (stats.waiting, stats.running, stats.pages_used) == (0, 0, 0)
        if self.drafting is not None:
            assert not self.drafting.has_work and self.drafting.stats().pages_used == 0
        self.counts["preemptions"] += stats.preemptions
        self.counts["accepted drafts"] += stats.accepted_tokens
        self.counts["cached prompt tokens"] += stats.cached_prompt_tokens
        self.counts["engine steps"] += stats.steps
        self.counts["generated tokens"] += stats.generated_tokens


def run(operations: int, seed: int, per_engine: int = 500) -> Counter[str]:
    """So many operations over engines of random sizes; counts of what happened."""
    counts: Counter[str] = Counter()
    for number in range(-(-operations // per_engine)):
        fuzz = Fuzz(seed + number, speculate=number % 2 == 1)
        for _ in range(min(per_engine, operations - number * per_engine)):
            fuzz.operate()
        fuzz.drain()
        counts += fuzz.counts
    return counts
