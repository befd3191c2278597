"""The answer to one request on its way from the engine's thread to a reader on the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from groundup.inference.sampling import TokenLogprob


class Output(Protocol):
    """What one step gave to one request: the new text and tokens, and why it ended if it did."""

    request: Any
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: str | None
    error: str | None


class QueueFull(Exception):
    """So many requests wait that one more is refused; `retry_after` seconds from now there may be room."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")
        self.retry_after = retry_after


class Unavailable(Exception):
    """No new requests: the service is draining, closed, or its engine has failed."""


class RequestFailed(Exception):
    """The engine ended a request with an error, or the service did."""


class Stream:
    """The outputs of one request, in order, as an asynchronous iterator. `close` aborts what is not finished.

    With `at_once` false its reader is woken when the last output is there, and not for each.
    """

    def __init__(self, when_closed: Callable[["Stream"], None], at_once: bool = True) -> None:
        self.request: Any = None  # the engine's; set and read on its thread
        self.at_once = at_once
        self.closed = False
        self.opened = time.monotonic()
        self.first: float | None = None
        self.last: float | None = None
        self.count = 0
        self.finish_reason: str | None = None
        self._when_closed = when_closed
        self._ready: deque[Any] = deque()
        self._news = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def waiting(self) -> bool:
        """Whether nothing has come yet."""
        return self.first is None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while True:
            over = self.finish_reason is not None or self.closed  # asked first: the last output may come meanwhile
            if self._ready:
                return self._ready.popleft()
            if self._failure is not None:
                raise self._failure
            if over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Idempotent. The request's pages are free again within one step of the engine."""
        self._when_closed(self)

    def push(self, output: Any) -> None:
        """On the engine's thread; `wake` follows on the loop where somebody waits for this."""
        if self.closed:
            return
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.count += len(output.tokens)
        if output.finish_reason == "error":
            if output.text or output.tokens:
                self._ready.append(output)  # what came before the error is read before it
            self._failure = RequestFailed(output.error or "the engine could not answer this request")
            return
        self._ready.append(output)
        self.finish_reason = output.finish_reason

    def fail(self, error: Exception) -> None:
        """On the loop: the reader gets this behind the outputs that are there."""
        self._failure = error
        self._news.set()

    def wake(self) -> None:
        """On the loop: let the reader look again."""
        self._news.set()
