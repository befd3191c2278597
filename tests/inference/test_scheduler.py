import pytest

from groundup.inference import SamplingParams
from groundup.inference.batch_cache import PageStore
from groundup.inference.pages import Pages
from groundup.inference.request import Request
from groundup.inference.scheduler import Scheduler
from groundup.tokenizer.stream import StreamDecoder
from tests.inference.endurance import run
from tests.inference.small import engine, model


def new_scheduler(num_pages=16, slots=4, budget=12, page_size=4, share=True):
    store = PageStore(model().config, num_pages, page_size, slots, 16)
    return Scheduler(Pages(num_pages, page_size, share), store, budget)


def new_request(number, length, room=50, first=0):
    ids = list(range(first, first + length))
    return Request(number, ids, SamplingParams(), StreamDecoder(lambda i: bytes([i])), {255}, room)


def step(scheduler):
    """The tokens that each request runs; whoever has all computed gets one more."""
    work = scheduler.schedule()
    for each in work:
        if each.span.wanted:
            each.request.push(97)
        scheduler.advance(each.request, each.known)
    return {each.request.id: len(each.span.tokens) for each in work}


def test_the_picture_of_the_module():
    scheduler = new_scheduler()
    a, b, c = new_request(0, 5), new_request(1, 14, first=100), new_request(2, 6, first=200)
    scheduler.add(a)
    scheduler.add(b)
    assert step(scheduler) == {0: 5, 1: 7}
    scheduler.add(c)
    assert step(scheduler) == {0: 1, 1: 7, 2: 4}
    assert step(scheduler) == {0: 1, 1: 1, 2: 2}
    assert [len(r.tokens) for r in (a, b, c)] == [3, 2, 1]


def test_the_youngest_gives_way_and_comes_back_first():
    scheduler = new_scheduler(num_pages=4, budget=40, share=False)
    a, b, c = new_request(0, 8), new_request(1, 7, first=100), new_request(2, 3, first=200)
    for request in (a, b, c):
        scheduler.add(request)
    assert step(scheduler) == {0: 8, 1: 7}  # c waits: all four pages are held
    assert step(scheduler) == {0: 1}  # the third page of a was one of b's
    assert list(scheduler.waiting) == [b, c] and not b.pages and scheduler.preemptions == 1
    scheduler.remove(a)
    assert step(scheduler) == {1: 8, 2: 3}


def test_nobody_overtakes_the_first_in_the_queue():
    scheduler = new_scheduler(num_pages=4, budget=40)
    a, b, c = new_request(0, 12), new_request(1, 9, first=100), new_request(2, 1, first=200)
    for request in (a, b, c):
        scheduler.add(request)
    assert step(scheduler) == {0: 12}
    assert list(scheduler.waiting) == [b, c]


def test_a_beginning_that_is_being_computed_is_waited_for():
    scheduler = new_scheduler(budget=6)
    a, b = new_request(0, 9), new_request(1, 10)
    scheduler.add(a)
    scheduler.add(b)
    assert step(scheduler) == {0: 6}
    assert step(scheduler) == {0: 3}
    assert step(scheduler) == {0: 1, 1: 2}  # b's first eight tokens are a's
    assert b.pages[:2] == a.pages[:2] and b.cached_tokens == 8 and scheduler.cached_prompt_tokens == 8


def test_drafts_take_free_pages_only_and_end_at_the_limit():
    scheduler = new_scheduler(num_pages=3, budget=40, page_size=2)
    a = new_request(0, 3)
    scheduler.add(a)
    step(scheduler)
    a.draft = [1, 2, 3, 4, 5]
    (work,) = scheduler.schedule()
    assert (work.known, len(work.span.tokens), work.span.wanted) == (1, 3, 3)  # six tokens fit three pages
    a.push(97)
    scheduler.advance(a, 1)
    scheduler.crop(a)
    assert len(a.pages) == 2 and scheduler.pages.available == 1
    a.limit, a.draft = len(a.tokens) + 2, [1, 2, 3]
    (work,) = scheduler.schedule()
    assert work.span.wanted == 2


def test_removing_from_anywhere_frees_everything():
    scheduler = new_scheduler(slots=1)
    a, b = new_request(0, 5), new_request(1, 5)
    scheduler.add(a)
    scheduler.add(b)
    step(scheduler)
    for request in (b, a, a):
        scheduler.remove(request)
    assert not scheduler.waiting and not scheduler.running
    assert scheduler.pages.used == 0 and scheduler.free_slots == [0]
    assert (scheduler.store.tables == scheduler.store.num_pages).all()


def test_random_operations_lose_no_page_and_change_no_answer():
    counts = run(1_000, seed=10, per_engine=50)
    happened = "submit", "abort", "refused", "end", "length", "error", "preemptions", "cached prompt tokens"
    kinds = "window True", "decoder prompts", "decoder tokens", "int8", "fp8", "Told", "NgramProposer", "Drafted"
    for name in (*happened, *(f"engines, {kind}" for kind in kinds)):
        assert counts[name], f"{name} never happened, so nothing was tested: {counts}"


def test_a_pool_of_one_page():
    lone = engine(cache_tokens=4, page_size=4)
    done = lone.generate([5, 6], max_tokens=2**63, temperature=0)
    assert (len(done.tokens), done.finish_reason) == (3, "length")  # the last token needs no place
    assert done.tokens == engine().generate([5, 6], max_tokens=3, temperature=0).tokens
    assert len(lone.generate([1, 2, 3, 4], max_tokens=9, temperature=0).tokens) == 1
    with pytest.raises(ValueError, match="5 tokens do not fit the cache of 4; raise the engine's cache_tokens"):
        lone.submit([1, 2, 3, 4, 5])
