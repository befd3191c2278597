"""Which tokens run in the next step: continuous batching with chunked prefill, pages on demand, preemption.

    budget 12 tokens per step        step 1       step 2       step 3
    A  prompt of 5, then decodes     5 (prompt)   1            1
    B  prompt of 14                  7            7            1
    C  prompt of 6, arrives late                  4            2 (the rest: first token)

Running sequences come first, those that decode before those whose prompt is not through, each in order of arrival;
then waiting ones are let in, in order, as long as a row, the budget and pages for the whole prompt are left. Yu et al.
2022 (Orca); chunks of prompts beside decoding tokens: Agrawal et al. 2023 (arXiv:2308.16369).

When a running sequence finds no page, the youngest one gives up all of its own, goes back to the front of the queue,
and later computes again what it had (Kwon et al. 2023, section 4.5, arXiv:2309.06180). The oldest is never the one to
give way, and admission lets nobody in whose sequence could outgrow the pool, so somebody always advances.

Where every layer has a window, pages wholly behind the widest are given back as a sequence advances (kept for others
with the same beginning, as long as there is room), and it never holds more than a step needs:

    window 6, pages of 4, 14 tokens computed          [ given back ] [ given back ] [8 9 10 11] [12 13 . .]
"""

from collections import deque
from dataclasses import dataclass

from groundup.inference.batch_cache import PageStore, Reach
from groundup.inference.pages import Pages
from groundup.inference.request import Request
from groundup.inference.runner import Span


@dataclass(frozen=True)
class Work:
    """A request and what it runs in this step; behind `known` tokens of the span come drafted ones."""

    request: Request
    span: Span
    known: int


GIVEN_BACK = -1
"""In a request's pages, where one was that no layer looks back to any more."""


def pages_at_once(length: int, page_size: int, step_tokens: int, reach: Reach | None) -> int:
    """The most pages that a sequence of this length holds while it is computed, up to `step_tokens` at a time."""
    whole = -(-length // page_size)
    if reach is None:
        return whole
    return min(whole, -(-reach.sink_tokens // page_size) + -(-(reach.window - 1 + step_tokens) // page_size) + 1)


class Scheduler:
    """Requests that wait and run, over one pool of pages. `step_tokens` is the budget of a step.

    reach: how far back the model looks; None if to the beginning.
    """

    def __init__(self, pages: Pages, store: PageStore, step_tokens: int, reach: Reach | None = None) -> None:
        self.pages, self.store, self.step_tokens, self.reach = pages, store, step_tokens, reach
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.free_slots = list(range(store.rows - 1, -1, -1))
        self.preemptions = self.prompt_tokens = self.cached_prompt_tokens = 0

    def add(self, request: Request) -> None:
        """To the end of the queue."""
        self.waiting.append(request)

    def schedule(self) -> list[Work]:
        """The spans of the next step, with pages for all of their tokens."""
        planned: dict[int, Work] = {}
        budget = self.step_tokens
        preempted = self.preemptions
        for request in sorted(self.running, key=lambda r: r.pending > 1):  # stable: by arrival within each kind
            known = min(request.pending, budget)
            if request.slot is None or not known or not self._make_room(request, request.computed + known, planned):
                continue
            planned[request.id] = self._plan(request, known, budget)
            budget = self.step_tokens - sum(len(work.span.tokens) for work in planned.values())
        while budget and self.preemptions == preempted and (request := self._admit()) is not None:
            known = min(request.pending, budget)
            has_room = self._make_room(request, request.computed + known, planned)
            assert has_room, "a request is let in when there are pages for its prompt"
            planned[request.id] = self._plan(request, known, budget)
            budget -= len(planned[request.id].span.tokens)
        return list(planned.values())

    def _plan(self, request: Request, known: int, budget: int) -> Work:
        """The span of `known` tokens and as many drafted ones as budget, limit and free pages allow."""
        is_last = known == request.pending
        left = request.limit - len(request.tokens) - 1  # the token after the draft is sampled, too
        drafted = request.draft[: max(0, min(left, budget - known))] if is_last else []
        while drafted and not self._extend(request, request.computed + known + len(drafted)):
            drafted = drafted[:-1]
        tokens = request.ids[request.computed : request.computed + known] + drafted
        assert request.slot is not None
        wanted = 1 + len(drafted) if is_last else 0
        return Work(request, Span(tokens, request.computed, request.pages, request.slot, wanted), known)

    def _make_room(self, request: Request, length: int, planned: dict[int, Work]) -> bool:
        """Pages for the first `length` tokens, from the youngest if need be; False if that is this request."""
        while not self._extend(request, length):
            youngest = self.running[-1]
            planned.pop(youngest.id, None)
            self.preempt(youngest)
            if youngest is request:
                return False
        return True

    def _extend(self, request: Request, length: int) -> bool:
        """Give the request pages for so many tokens, or none."""
        missing = -(-length // self.pages.page_size) - len(request.pages)
        if missing > self.pages.available:
            return False
        for _ in range(missing):
            page = self.pages.take()
            assert page is not None and request.slot is not None
            self.store.place(request.slot, len(request.pages), [page])
            request.pages.append(page)
        return True

    def _admit(self) -> Request | None:
        """Let the first waiting request in, with the pages of its beginning that are known."""
        if not self.waiting or not self.free_slots:
            return None
        request, size = self.waiting[0], self.pages.page_size
        # The last token is computed in any case, for its logits, and into a page of the request's own.
        blocks = self.pages.match(request.ids, request.salt, (len(request.ids) - 1) // size)
        if self._comes_soon(request, len(blocks)):
            return None
        self.pages.hold(blocks)
        held = [block.page for block in blocks]
        if pages_at_once(len(request.ids), size, self.step_tokens, self.reach) - len(held) > self.pages.available:
            self.pages.release(held)
            return None
        self.waiting.popleft()
        self.running.append(request)
        request.slot, request.pages = self.free_slots.pop(), held
        request.keys = [block.key for block in blocks]
        request.computed = len(held) * size
        self.store.place(request.slot, 0, held)
        self._give_back(request)
        if not request.tokens:
            request.cached_tokens = request.computed
            self.prompt_tokens += len(request.prompt)
            self.cached_prompt_tokens += request.computed
        return request

    def _comes_soon(self, request: Request, found: int) -> bool:
        """Whether a running prompt is about to fill the block after the `found` ones: then waiting saves computing."""
        end = (found + 1) * self.pages.page_size
        if not self.pages.share or end >= len(request.ids):
            return False
        return any(
            other.pending > 1
            and other.salt == request.salt
            and other.computed < end <= len(other.ids)
            and other.ids[:end] == request.ids[:end]
            for other in self.running
        )

    def advance(self, request: Request, count: int) -> None:
        """The next `count` of the request's known tokens are computed: its full pages become known to others."""
        request.computed += count
        size = self.pages.page_size
        while self.pages.share and (len(request.keys) + 1) * size <= request.computed:
            start = len(request.keys) * size
            tokens = tuple(request.ids[start : start + size])
            request.keys.append(self.pages.register(request.pages[len(request.keys)], request.parent, tokens))
        self._give_back(request)

    def _give_back(self, request: Request) -> None:
        """Pages that no layer looks back to from the next token on."""
        if self.reach is None:
            return
        size = self.pages.page_size
        first = -(-self.reach.sink_tokens // size)
        behind = max(first, (request.computed - self.reach.window + 1) // size)
        done = [i for i in range(first, min(behind, len(request.pages))) if request.pages[i] != GIVEN_BACK]
        if not done:
            return
        assert request.slot is not None
        self.pages.release([request.pages[i] for i in done])
        for i in done:
            request.pages[i] = GIVEN_BACK
            self.store.place(request.slot, i, [self.store.num_pages])

    def crop(self, request: Request) -> None:
        """Give back pages behind the tokens that are computed, where rejected drafts were."""
        needed = -(-request.computed // self.pages.page_size)
        if needed < len(request.pages):
            assert request.slot is not None
            self.store.clear(request.slot, needed)
            self.pages.release(request.pages[needed:])
            del request.pages[needed:]

    def preempt(self, request: Request) -> None:
        """Back to the front of the queue, without pages."""
        self._leave(request)
        self.waiting.appendleft(request)
        self.preemptions += 1

    def remove(self, request: Request) -> None:
        """Out of the queue or of the running, with its pages given back; nothing happens to one that is in neither.

        Pages of a request that failed are not kept for others, and are zeroed.
        """
        if request.slot is not None:
            self._leave(request, keep=request.failure is None)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _leave(self, request: Request, keep: bool = True) -> None:
        assert request.slot is not None
        self.running.remove(request)
        freed = self.pages.release([page for page in request.pages if page != GIVEN_BACK], keep)
        if not keep:
            self.store.scrub(freed)
        self.store.clear(request.slot)
        self.free_slots.append(request.slot)
        request.pages, request.keys, request.draft = [], [], []
        request.slot, request.computed = None, 0
