"""The bridge between an engine's thread and asyncio, with an engine that says what it is told to."""

import asyncio
import itertools
import threading
import time
from collections import deque
from types import SimpleNamespace

import pytest

from groundup.inference import SamplingParams
from groundup.inference.request import EngineStats
from groundup.inference.service import Service
from groundup.inference.streams import QueueFull, RequestFailed, Unavailable

PARAMS = SamplingParams(max_tokens=5)


class FakeEngine:
    """Answers with the prompt's numbers counted up, one a step; `gate` holds its steps back."""

    def __init__(self, batch_size=4):
        self.batch_size, self.number = batch_size, 0
        self.queue, self.running = deque(), []
        self.aborted, self.threads, self.salts = [], set(), []
        self.gate = threading.Event()
        self.gate.set()
        self.generated = 0

    def submit(self, prompt, params, *, salt="", constraint=None):
        self.threads.add(threading.get_ident())
        self.salts.append(salt)
        if prompt == [13]:
            raise ValueError("prompt: 13 is unlucky")
        self.number += 1
        request = SimpleNamespace(id=self.number, prompt=prompt, params=params, tokens=[])
        self.queue.append(request)
        return request

    def abort(self, request):
        self.threads.add(threading.get_ident())
        self.aborted.append(request.id)
        self.running = [r for r in self.running if r is not request]
        self.queue = deque(r for r in self.queue if r is not request)

    def step(self):
        self.gate.wait(10)
        self.threads.add(threading.get_ident())
        while self.queue and len(self.running) < self.batch_size:
            self.running.append(self.queue.popleft())
        return [self.advance(request) for request in list(self.running)]

    def advance(self, request):
        token = request.prompt[0] + len(request.tokens)
        request.tokens.append(token)
        self.generated += 1
        done = len(request.tokens) == request.params.max_tokens
        reason, error = ("length" if done else None), None
        if request.prompt == [99] and len(request.tokens) == 2:
            reason, error = "error", "99 went wrong"
        if reason:
            self.running.remove(request)
        return SimpleNamespace(request=request, text=f"{token} ", tokens=[token], logprobs=[], finish_reason=reason,
                               error=error)  # fmt: skip

    @property
    def has_work(self):
        return bool(self.queue or self.running)

    def stats(self):
        return EngineStats(len(self.queue), len(self.running), 9, 0, 0, 0, 0, self.generated, 0, 0, 0, {})


@pytest.fixture
def fake():
    return FakeEngine()


@pytest.fixture
def service(fake):
    service = Service(fake, max_waiting=8)
    yield service
    fake.gate.set()
    service.close()
    assert not service._thread.is_alive()


async def text_of(service, number, params=PARAMS):
    return "".join([output.text async for output in service.stream([number], params)])


def test_streams_get_their_own_outputs_in_order(service, fake):
    async def many():
        return await asyncio.gather(*(text_of(service, 100 * n) for n in range(1, 8)))

    for number, text in enumerate(asyncio.run(many()), 1):
        assert text == "".join(f"{100 * number + i} " for i in range(5))
    assert fake.threads == {service._thread.ident}
    assert service.open_streams == service.waiting == 0
    assert service.stats().generated_tokens == 35


def test_a_reader_of_the_whole_is_woken_once(service, fake, monkeypatch):
    """The same outputs; the engine's thread calls the loop at the end alone, also where that is an error."""
    calls, call = [], service._call
    monkeypatch.setattr(service, "_call", lambda function, *rest: (calls.append(function), call(function, *rest)))

    async def whole(number):
        stream = service.open([number], PARAMS, at_once=False)
        return stream, "".join([output.text async for output in stream])

    async def both():
        stream, text = await whole(7)
        assert text == "7 8 9 10 11 " and stream.count == 5 and stream.first is not None
        assert len(calls) == 1
        with pytest.raises(RequestFailed, match="99 went wrong"):
            await whole(99)

    asyncio.run(both())
    assert len(calls) == 2 and service.open_streams == service.waiting == 0


def test_a_place_is_free_as_soon_as_the_first_token_is_there(service, fake):
    """Though nobody is woken for it."""

    async def ask():
        fake.gate.clear()
        streams = [service.open([number], PARAMS, at_once=False) for number in range(8)]
        assert service.has_no_place_but(0) and service.waiting == 8
        with pytest.raises(QueueFull):
            service.open([9], PARAMS)
        fake.gate.set()
        texts = ["".join([output.text async for output in stream]) for stream in streams]
        assert not service.has_no_place_but(7) and service.has_no_place_but(8)
        return texts

    assert asyncio.run(ask()) == ["".join(f"{number + i} " for i in range(5)) for number in range(8)]


def test_what_the_engine_refuses_and_what_fails(service):
    async def ask():
        with pytest.raises(ValueError, match="unlucky"):
            await text_of(service, 13)
        with pytest.raises(RequestFailed, match="99 went wrong"):
            await text_of(service, 99)
        return await text_of(service, 1)

    assert asyncio.run(ask()) == "1 2 3 4 5 "
    assert service.open_streams == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_what_came_before_an_error_is_read_before_it(service, at_once):
    async def ask():
        read, stream = [], service.open([99], PARAMS, at_once=at_once)
        with pytest.raises(RequestFailed, match="99 went wrong"):
            async for output in stream:
                read += output.tokens
        return read

    assert asyncio.run(ask()) == [99, 100]
    assert service.open_streams == 0


def test_closing_aborts_and_later_outputs_are_dropped(service, fake):
    async def leave():
        stream = service.open([1], SamplingParams(max_tokens=10**6))
        seen = [await anext(stream) for _ in range(3)]
        stream.close()
        stream.close()
        while fake.has_work:
            await asyncio.sleep(0.001)
        return len(seen), [output async for output in stream]

    seen, _ = asyncio.run(leave())
    assert seen == 3
    assert fake.aborted == [1]
    assert service._streams == {}


def test_a_stream_closed_before_it_is_submitted_never_runs(service, fake):
    async def leave():
        fake.gate.clear()
        first = service.open([1], PARAMS)
        while not fake.has_work:
            await asyncio.sleep(0.001)
        second = service.open([2], PARAMS)
        second.close()
        fake.gate.set()
        return [output.text async for output in first]

    assert len(asyncio.run(leave())) == 5
    assert fake.number == 1


def test_the_queue_is_bounded(service, fake):
    async def crowd():
        fake.gate.clear()
        streams = [service.open([n], PARAMS) for n in range(8)]
        began = time.monotonic()
        with pytest.raises(QueueFull) as caught:
            service.open([9], PARAMS)
        assert 1 <= caught.value.retry_after <= 60
        with pytest.raises(QueueFull):
            service.admit(1)
        assert time.monotonic() - began < 5
        fake.gate.set()
        for stream in streams:
            assert [output async for output in stream]
        assert await text_of(service, 1)

    asyncio.run(crowd())


def test_draining(service, fake):
    async def drain():
        quick = asyncio.create_task(text_of(service, 1))
        slow = asyncio.create_task(text_of(service, 2, SamplingParams(max_tokens=10**9)))
        await asyncio.sleep(0.05)
        assert not await service.drain(0.1)
        with pytest.raises(Unavailable):
            service.open([3], PARAMS)
        with pytest.raises(RequestFailed, match="shutting down"):
            await slow
        return await quick

    assert asyncio.run(drain()) == "1 2 3 4 5 "
    assert service.open_streams == 0


def test_closing_tells_those_who_still_read(fake):
    service = Service(fake)

    async def close():
        reading = asyncio.create_task(text_of(service, 2, SamplingParams(max_tokens=10**9)))
        scoring = asyncio.create_task(service.score(lambda engine: itertools.repeat(1)))
        while not fake.generated:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(service.close)
        for task in (reading, scoring):
            with pytest.raises(RequestFailed, match="the service was closed"):
                await asyncio.wait_for(task, 60)

    asyncio.run(close())
    assert service.open_streams == 0 and not service._thread.is_alive()


def test_the_rate_of_an_idle_engine_is_zero(service, monkeypatch):
    assert asyncio.run(text_of(service, 1))
    assert service.tokens_per_second() > 0
    later = time.monotonic() + 11
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert service.tokens_per_second() == 0


def test_an_engine_that_raises_fails_all(service, fake):
    async def ask():
        fake.step = lambda: 1 / 0
        with pytest.raises(RequestFailed, match="ZeroDivisionError"):
            await text_of(service, 1)
        with pytest.raises(Unavailable):
            await text_of(service, 2)

    asyncio.run(ask())
    assert service.failure


def test_scores_are_made_between_steps(service, fake):
    def work(engine):
        assert engine is fake
        for number in range(3):
            fake.threads.add(threading.get_ident())
            yield number

    def broken(engine):
        yield 1
        raise ValueError("prompt: broken")

    async def ask():
        text, *scores = await asyncio.gather(text_of(service, 1), *(service.score(work) for _ in range(3)))
        with pytest.raises(ValueError, match="broken"):
            await service.score(broken)
        return text, scores

    assert asyncio.run(ask()) == ("1 2 3 4 5 ", [[0, 1, 2]] * 3)
    assert fake.threads == {service._thread.ident}


def test_a_step_that_hangs_is_seen(service, fake):
    async def ask():
        assert service.stuck_seconds() == 0
        fake.gate.clear()
        stream = service.open([1], PARAMS)
        await asyncio.sleep(0.2)
        stuck = service.stuck_seconds()
        fake.gate.set()
        assert [output async for output in stream]
        return stuck

    assert asyncio.run(ask()) > 0.05


def test_salts_and_speeds_are_told(service, fake):
    async def ask():
        stream = service.open([1], PARAMS, salt="mine")
        assert len([output async for output in stream]) == stream.count == 5
        assert stream.opened <= stream.first <= stream.last

    asyncio.run(ask())
    assert fake.salts == ["mine"]
    assert service.tokens_per_second() > 0


def test_a_queue_without_room():
    with pytest.raises(ValueError, match="max_waiting=0"):
        Service(FakeEngine(), max_waiting=0)
