"""The engine on a thread of its own, and a bridge from it to asyncio.

    event loop                               engine's thread
    open(prompt) -> Stream  --commands--->   submit, abort, score
    async for output        <--outputs----   step() -> outputs, statistics
                            <--one call---   per step in which somebody is to be woken
                               at most

The engine is not thread-safe: only its thread touches it, between steps. The event loop never waits for it. How many
streams wait for their first token is bounded, and one too many is refused at once, on the event loop.

The two share Python's lock, so the engine's thread pays for what the loop does: a stream whose reader wants the whole
answer is woken at its end only.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from groundup.inference.sampling import SamplingParams
from groundup.inference.streams import QueueFull, RequestFailed, Stream, Unavailable

logger = logging.getLogger(__name__)

RATE_SECONDS = 10.0  # over which tokens per second are averaged
_OVER = object()


class SteppedEngine(Protocol):
    """The part of an Engine that a Service drives."""

    def submit(self, prompt: Any, params: SamplingParams, *, salt: str = "", constraint: Any = None) -> Any: ...

    def abort(self, request: Any) -> Any: ...

    def step(self) -> list[Any]: ...

    def stats(self) -> Any: ...

    @property
    def has_work(self) -> bool: ...


class Service:
    """Runs an engine on its own thread and hands its outputs to the event loop that opened the stream.

    At most `max_waiting` streams wait for their first token; one more raises QueueFull. All methods but `close` are
    for one event loop.
    """

    def __init__(self, engine: SteppedEngine, max_waiting: int = 64) -> None:
        if max_waiting < 1:
            raise ValueError(f"max_waiting={max_waiting}; expected at least 1")
        self.engine, self.max_waiting = engine, max_waiting
        self.draining = False
        self.failure: str | None = None
        self._open: set[Stream] = set()
        self._waiting: set[Stream] = set()  # of the open ones; the engine's thread takes out who has a first token
        self._scoring: set[asyncio.Future[list[Any]]] = set()
        self._finished: deque[float] = deque(maxlen=64)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}  # by id of the engine's request; the engine's thread only
        self._scores: deque[Iterator[None]] = deque()  # likewise
        self._stats = engine.stats()
        self._rates: deque[tuple[float, int]] = deque([(time.monotonic(), self._stats.generated_tokens)])
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="groundup-engine", daemon=True)
        self._thread.start()

    # on the event loop -----------------------------------------------------------------------------------------

    def open(
        self,
        prompt: list[int] | str,
        params: SamplingParams,
        *,
        salt: str = "",
        constraint: Any = None,
        at_once: bool = True,
    ) -> Stream:
        """Ask for one answer. What the engine refuses is raised as ValueError by the stream's first item.

        Raises QueueFull or Unavailable at once.
        """
        self.admit(1)
        stream = Stream(self._close_stream, at_once)
        self._open.add(stream)
        self._waiting.add(stream)
        self._commands.put(lambda: self._submit(stream, prompt, params, salt, constraint))
        return stream

    async def stream(
        self, prompt: list[int] | str, params: SamplingParams, *, salt: str = "", constraint: Any = None
    ) -> AsyncIterator[Any]:
        """`open`, as a generator that aborts the request when it is closed."""
        stream = self.open(prompt, params, salt=salt, constraint=constraint)
        try:
            async for output in stream:
                yield output
        finally:
            stream.close()

    def admit(self, count: int) -> None:
        """QueueFull unless `count` more streams may be opened now; Unavailable when none may."""
        if self.failure is not None:
            raise Unavailable(self.failure)
        if self.draining:
            raise Unavailable("the server is shutting down")
        self._loop = self._loop or asyncio.get_running_loop()
        if len(self._waiting) + count > self.max_waiting:
            raise self.queue_full()

    def queue_full(self) -> QueueFull:
        """What is said to one too many now."""
        return QueueFull(len(self._waiting), self._retry_after(len(self._waiting)))

    def has_no_place_but(self, claimed: int) -> bool:
        """Whether one more, beside so many that are on their way, would be one too many.

        False where none is taken for another reason.
        """
        return len(self._waiting) + claimed >= self.max_waiting and self.failure is None and not self.draining

    @property
    def waiting(self) -> int:
        """Streams that have not had a first token."""
        return len(self._waiting)

    @property
    def open_streams(self) -> int:
        """Streams that are neither finished nor closed."""
        return len(self._open)

    def stats(self) -> Any:
        """The engine's statistics after its last step."""
        return self._stats

    def tokens_per_second(self) -> float:
        """Generated tokens over the last ten seconds."""
        (then, before), (now, after) = self._rates[0], (time.monotonic(), self._stats.generated_tokens)
        if after <= before or now - self._rates[-1][0] > RATE_SECONDS:  # nothing was made since
            return 0.0
        return (after - before) / max(now - then, 1e-3)

    def stuck_seconds(self) -> float:
        """How long the engine has been in its present step; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    async def score(self, work: Callable[[Any], Iterator[Any]]) -> list[Any]:
        """All items of the iterator `work(engine)`, made on the engine's thread, one item between two steps."""
        self.admit(1)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Any]] = loop.create_future()
        made: list[Any] = []

        def advance() -> Iterator[None]:
            try:
                for item in work(self.engine):
                    made.append(item)
                    yield
                    if done.cancelled():
                        return
            except Exception as error:
                self._call(_settle, done, None, error)
            else:
                self._call(_settle, done, made, None)

        self._commands.put(lambda: self._scores.append(advance()))
        self._scoring.add(done)
        try:
            return await done
        finally:
            self._scoring.discard(done)

    def give_up(self, reason: str) -> None:
        """Take no more requests, and fail those that there are: for an engine whose step does not come back."""
        self.failure = reason
        self._fail_all(RequestFailed(reason))

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests, wait for those that run, and fail what is left after `timeout` seconds.

        Returns whether all came to their end.
        """
        self.draining = True
        deadline = time.monotonic() + timeout
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        left = list(self._open)
        for stream in left:
            self._abandon(stream, RequestFailed("the server is shutting down; the answer is incomplete"))
        return not left

    def close(self, timeout: float = 10.0) -> None:
        """End the thread, from any thread. A step that runs is waited for, up to `timeout` seconds. Readers of what is
        left unfinished get a RequestFailed."""
        self.draining = True
        self._commands.put(None)
        self._thread.join(timeout)

    def _abandon(self, stream: Stream, error: Exception) -> None:
        stream.fail(error)
        self._forget(stream)
        self._commands.put(lambda: self._abort(stream))

    def _close_stream(self, stream: Stream) -> None:
        if stream.closed:
            return
        stream.closed = True
        stream.wake()
        if stream in self._open:
            self._forget(stream)
            self._commands.put(lambda: self._abort(stream))

    def _forget(self, stream: Stream) -> None:
        self._open.discard(stream)
        self._waiting.discard(stream)

    def _end(self, stream: Stream, error: Exception) -> None:
        """The engine has refused it."""
        stream.fail(error)
        self._forget(stream)
        self._finished.append(time.monotonic())

    def _tell(self, pairs: list[tuple[Stream, Any]]) -> None:
        """Wake those whose outputs are to be read now."""
        for stream, output in pairs:
            stream.wake()
            if output.finish_reason is not None:
                self._forget(stream)
                self._finished.append(time.monotonic())

    def _retry_after(self, waiting: int) -> int:
        """Seconds until those who wait now have been served, at the present pace."""
        if len(self._finished) < 2:
            return 1
        pace = (len(self._finished) - 1) / max(time.monotonic() - self._finished[0], 1e-3)
        return max(1, min(60, round(waiting / pace)))

    # on the engine's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._scores:
                    self._advance_a_score()
                if self.engine.has_work:
                    self._step()
            self._call(self._fail_all, RequestFailed("the service was closed; the answer is incomplete"))
        except Exception as error:  # the engine never raises for a request: this is a fault of the program
            logger.exception("the engine has stopped")
            self.failure = f"the engine has stopped: {type(error).__name__}"
            self._call(self._fail_all, RequestFailed(self.failure))

    def _take_commands(self) -> bool:
        """Carry out all commands, waiting for one when there is nothing else to do; False when it is over."""
        idle = not self.engine.has_work and not self._scores
        while idle or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
            idle = False
            if self._commands.empty():
                self._stats = self.engine.stats()
        return True

    def _submit(self, stream: Stream, prompt: Any, params: SamplingParams, salt: str, constraint: Any) -> None:
        if stream.closed:
            return
        try:
            request = self.engine.submit(prompt, params, salt=salt, constraint=constraint)
        except Exception as error:
            self._call(self._end, stream, error)
            return
        stream.request = request
        self._streams[request.id] = stream

    def _abort(self, stream: Stream) -> None:
        if stream.request is not None and self._streams.pop(stream.request.id, None) is not None:
            self.engine.abort(stream.request)

    def _step(self) -> None:
        self._step_began = time.monotonic()
        outputs = self.engine.step()
        self._step_began = None
        pairs = [(stream, o) for o in outputs if (stream := self._streams.get(o.request.id)) is not None]
        for stream, output in pairs:
            stream.push(output)
            self._waiting.discard(stream)
            if output.finish_reason is not None:
                del self._streams[output.request.id]
        self._stats = self.engine.stats()
        self._note_rate()
        if news := [pair for pair in pairs if pair[0].at_once or pair[1].finish_reason is not None]:
            self._call(self._tell, news)

    def _advance_a_score(self) -> None:
        score = self._scores.popleft()
        if next(score, _OVER) is not _OVER:
            self._scores.append(score)  # behind the others: each gets its turn

    def _note_rate(self) -> None:
        now = time.monotonic()
        self._rates.append((now, self._stats.generated_tokens))
        while len(self._rates) > 1 and self._rates[0][0] < now - RATE_SECONDS:
            self._rates.popleft()

    def _fail_all(self, error: Exception) -> None:
        for stream in list(self._open):
            stream.fail(error)
        self._open.clear()
        self._waiting.clear()
        for done in list(self._scoring):
            _settle(done, None, error)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:  # closed meanwhile: nobody listens any more
                logger.debug("an output came after the event loop had been closed")


def _settle(done: "asyncio.Future[list[Any]]", made: list[Any] | None, error: Exception | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(made or [])
